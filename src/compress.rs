//! Compression of whole bodies. The same input gives the same bytes, so that an object sent twice is
//! the same object.

use std::io::Write as _;

use flate2::write::GzEncoder;

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, level 1 to 9. Several members in a row read as one file.
    Gzip(u32),
    /// Zstandard, level -7 to 19. Several frames in a row read as one file.
    Zstd(i32),
}

impl Compression {
    /// The end of a file's name.
    pub fn extension(self) -> &'static str {
        match self {
            Compression::None => "",
            Compression::Gzip(_) => ".gz",
            Compression::Zstd(_) => ".zst",
        }
    }

    /// The value of `Content-Encoding`.
    pub fn content_encoding(self) -> Option<&'static str> {
        match self {
            Compression::None => None,
            Compression::Gzip(_) => Some("gzip"),
            Compression::Zstd(_) => Some("zstd"),
        }
    }

    /// Compresses `text` into one member or frame.
    pub fn apply(self, text: &[u8]) -> Vec<u8> {
        const IN_MEMORY: &str = "writing into memory does not fail";
        match self {
            Compression::None => text.to_vec(),
            Compression::Gzip(level) => {
                let out = Vec::with_capacity(text.len() / 4);
                let mut encoder = GzEncoder::new(out, flate2::Compression::new(level));
                encoder.write_all(text).expect(IN_MEMORY);
                encoder.finish().expect(IN_MEMORY)
            }
            Compression::Zstd(level) => zstd::bulk::compress(text, level).expect(IN_MEMORY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn members_in_a_row_read_as_one_and_the_same_text_gives_the_same_bytes() {
        let text = "{\"message\":\"회원\"}\n".repeat(1_000);
        for compression in [
            Compression::Gzip(1),
            Compression::Gzip(9),
            Compression::Zstd(-7),
            Compression::Zstd(19),
        ] {
            let member = compression.apply(text.as_bytes());
            assert!(member.len() < text.len() / 10, "{compression:?}");
            assert_eq!(
                member,
                compression.apply(text.as_bytes()),
                "{compression:?}"
            );
            let two = [member.clone(), member].concat();
            let mut back = String::new();
            match compression {
                Compression::Zstd(_) => zstd::stream::read::Decoder::new(&two[..])
                    .unwrap()
                    .read_to_string(&mut back),
                _ => flate2::read::MultiGzDecoder::new(&two[..]).read_to_string(&mut back),
            }
            .unwrap();
            assert_eq!(back, text.repeat(2), "{compression:?}");
        }
    }
}
