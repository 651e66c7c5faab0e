//! Answers as an input writes them.

use bytes::Bytes;

/// What a request is met with.
#[derive(Clone, Debug)]
pub enum Answer {
    /// No connection.
    Refused,
    /// The request went out and the connection ended.
    Reset,
    /// The request went out and nothing came back.
    Silence,
    /// An answer.
    Http(Http),
}

/// An HTTP answer.
#[derive(Clone, Debug)]
pub struct Http {
    pub status: u16,
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Bytes,
    /// The connection ends before the body does.
    pub cut: bool,
}

impl Http {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_slice())
    }
}

impl Answer {
    /// Answers with `%%` between them: at least one.
    pub fn read_all(mut text: &[u8]) -> Vec<Answer> {
        const BETWEEN: &[u8] = b"\n%%\n";
        const MOST: usize = 16;
        let mut answers = Vec::new();
        while let Some(at) = text.windows(BETWEEN.len()).position(|w| w == BETWEEN)
            && answers.len() < MOST
        {
            answers.push(Answer::read(&text[..at]));
            text = &text[at + BETWEEN.len()..];
        }
        answers.push(Answer::read(text));
        answers
    }

    /// `refused`, `reset`, `silence`, or an HTTP answer without its version: a line with the status, lines
    /// of headers, an empty line, the body. A header `cut` cuts the body off.
    pub fn read(text: &[u8]) -> Answer {
        let (first, mut text) = line(text);
        match first {
            b"refused" => return Answer::Refused,
            b"reset" => return Answer::Reset,
            b"silence" => return Answer::Silence,
            _ => {}
        }
        let digits = first.iter().filter(|b| b.is_ascii_digit()).take(3);
        let status = digits.fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        let mut headers = Vec::new();
        let mut cut = false;
        loop {
            let (header, rest) = line(text);
            text = rest;
            if header.is_empty() {
                break;
            }
            let colon = header
                .iter()
                .position(|b| *b == b':')
                .unwrap_or(header.len());
            let (name, value) = header.split_at(colon);
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            cut |= name == "cut";
            headers.push((
                name,
                value.get(1..).unwrap_or_default().trim_ascii().to_vec(),
            ));
        }
        Answer::Http(Http {
            status: status.max(100),
            headers,
            body: Bytes::copy_from_slice(text),
            cut,
        })
    }
}

/// The first line, and what is behind it.
pub fn line(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|b| *b == b'\n') {
        Some(end) => (&text[..end], &text[end + 1..]),
        None => (text, &[]),
    }
}
