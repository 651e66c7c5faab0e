//! Any bytes as a chunk: no panic, no hang, every byte accounted for, every line valid JSON and what a slow
//! and simple encoder (`rmpv` reads, `serde_json` writes) would have written.
//!
//! An input is a byte of flags, what the flags ask for ([`Setup::read`]), and the chunk.

#![no_main]

mod reference;

use std::collections::{BTreeMap, HashSet};

use ferry::codec::extract::extract;
use ferry::codec::json::{MAX_DEPTH, Options};
use ferry::codec::msgpack::{Event, Events, Item};
use ferry::codec::template::Template;
use ferry::codec::time::{Strftime, TimeFormat};
use ferry::codec::{Encoded, Encoding, Place, encode};
use ferry::ids::{EventSet, Time};
use ferry::metrics::Reason;
use ferry_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let setup = Setup::read(data);
    let items: Vec<Item> = Events::new(setup.chunk).collect();
    every_byte_is_accounted_for(setup.chunk, &items);
    whole_events_at_the_front_are_read(setup.chunk, &items);

    let all = setup.encode(&EventSet::default());
    setup.check(&items, &EventSet::default(), &all);
    setup.check_steps(&EventSet::default(), &all);
    if !setup.settled.is_empty() {
        let rest = setup.encode(&setup.settled);
        setup.check(&items, &setup.settled, &rest);
        setup.check_steps(&setup.settled, &rest);
        let mut lines = lines(&all);
        lines.retain(|event, _| !setup.settled.contains(*event));
        assert_eq!(
            lines,
            self::lines(&rest),
            "a line depends on what was settled before"
        );
    }
    setup.check_extracted(&items);
});

const TAG: &[u8] = b"app.\xffhttp";

struct Setup<'a> {
    options: Options,
    names: Template,
    settled: EventSet,
    chunk: &'a [u8],
}

impl<'a> Setup<'a> {
    fn read(data: &'a [u8]) -> Self {
        const KEYS: [&str; 8] = ["k", "log", "time", "a.b", "a_b", "1", "/w==", "resource"];
        const DOTS: [&str; 4] = ["_", "", ".", "\""];
        const NAMES: [&str; 8] = [
            "x",
            "{tag}/%Y/%m/%d/%H",
            "{tag[1]}/{record.k}",
            "{record.a.b|none}-%H%M%S.%3N",
            "$TAG[0]",
            "{record.log}",
            "%s/%N",
            "{record.resource.attributes|..}",
        ];
        const FORMATS: [&str; 5] = ["%F %T.%6N", "%s", "%+", "%c%n%%", "%Y\"%j"];
        let mut input = Input::new(data);
        let flags = input.byte();
        let given = |flag: u8| flags & flag != 0;
        let own = given(1);
        let key = |input: &mut Input<'a>| match own {
            true => input.text(),
            false => input.pick(&KEYS).to_owned(),
        };
        let mut options = Options {
            log_key: given(2).then(|| key(&mut input)),
            replace_dots: given(4).then(|| input.pick(&DOTS).to_owned()),
            metadata_key: given(8).then(|| key(&mut input)),
            tag_key: given(16).then(|| key(&mut input)),
            ..Options::default()
        };
        if given(32) {
            let format = match input.byte() % 4 {
                0 => TimeFormat::Iso8601,
                1 => TimeFormat::Epoch,
                2 => TimeFormat::EpochMs,
                _ if own => strftime(&input.text()),
                _ => strftime(input.pick(&FORMATS)),
            };
            options.time = Some((key(&mut input), format));
        }
        // The configuration refuses names that are the same.
        let mut ours = HashSet::from([key_of_time(&options)]);
        options
            .tag_key
            .take_if(|key| !ours.insert(Some(key.clone())));
        options
            .metadata_key
            .take_if(|key| !ours.insert(Some(key.clone())));
        if given(64) {
            options.data_keys = (0..input.byte() % 4).map(|_| key(&mut input)).collect();
        }
        let mut settled = EventSet::default();
        let mut names = Template::parse(NAMES[0], true).expect("a literal");
        if given(128) {
            let text = if own {
                input.text()
            } else {
                input.pick(&NAMES).to_owned()
            };
            names = Template::parse(&text, true).unwrap_or(names);
            let mask = input.byte();
            (0..32)
                .filter(|n| mask >> (n % 8) & 1 == 1)
                .for_each(|n| settled.insert(n));
        }
        Setup {
            options,
            names,
            settled,
            chunk: input.rest(),
        }
    }

    fn encode(&self, settled: &EventSet) -> Encoded {
        encode(&self.options, &self.names, TAG, self.chunk, |event| {
            !settled.contains(event)
        })
    }

    /// Each event is a line, a letter or skipped, in one part and with what it is made of.
    fn check(&self, items: &[Item], settled: &EventSet, encoded: &Encoded) {
        assert_eq!(encoded.letters.len(), encoded.lettered.len());
        let mut seen = EventSet::default();
        let mut see = |event: u32| {
            assert!(!settled.contains(event), "event {event} was settled");
            assert!(!seen.contains(event), "event {event} comes twice");
            seen.insert(event);
        };
        for (&event, letter) in encoded.lettered.iter().zip(&encoded.letters) {
            see(event);
            assert_eq!(&*letter.tag, TAG);
            assert!(!letter.detail.is_empty());
            let record = letter.record.to_bytes();
            match items[event as usize] {
                Item::Malformed { bytes, .. } => {
                    assert_eq!((letter.reason, &*record), (Reason::Malformed, bytes));
                }
                Item::Event(event) => {
                    assert_eq!(letter.reason, Reason::TooDeep);
                    assert!(
                        record.ends_with(event.raw),
                        "after its group's marker, if anything"
                    );
                    let depth = reference::depth(&self.options, &event);
                    assert!(
                        depth.is_none_or(|depth| depth > MAX_DEPTH),
                        "{depth:?} is not too deep"
                    );
                }
            }
        }
        let tag = TAG;
        let mut names = HashSet::new();
        for part in &encoded.parts {
            assert!(
                names.insert(&part.name),
                "two parts have the name {}",
                part.name
            );
            assert!(!part.ends.is_empty() && part.ends.len() == part.events.len());
            assert_eq!(part.ends.last(), Some(&part.text.len()));
            let mut start = 0;
            for (n, (&end, &number)) in part.ends.iter().zip(&part.events).enumerate() {
                see(number);
                let Item::Event(event) = items[number as usize] else {
                    panic!("a line of malformed bytes");
                };
                let mut name = String::new();
                self.names.render(&tag, &event, &mut name);
                assert_eq!(name, part.name, "event {number} is in another's part");
                if n == 0 && encoded.letters.is_empty() && encoded.skipped.is_empty() {
                    assert_eq!(part.first, event.time);
                }
                let line = part.text[start..end]
                    .strip_suffix(b"\n")
                    .expect("a newline ends a line");
                self.check_line(line, &event);
                start = end;
            }
        }
        let count = u32::try_from(items.len()).expect("fewer than bytes");
        let left = (0..count).filter(|event| !settled.contains(*event) && !seen.contains(*event));
        assert_eq!(left.count(), encoded.skipped.len(), "events were lost");
        let skips = self.options.log_key.is_some() || !self.options.data_keys.is_empty();
        assert!(encoded.skipped.is_empty() || skips);
    }

    /// In steps of whatever size a chunk is the same.
    fn check_steps(&self, settled: &EventSet, encoded: &Encoded) {
        let encoding = Encoding {
            line_bytes: 40,
            name_bytes: 100,
            step_bytes: 2_000,
            ..Encoding::new(&self.options, &self.names)
        };
        let tag = TAG.into();
        let steps = encoding.steps(&tag, self.chunk, |event| !settled.contains(event));
        let steps: Vec<Encoded> = steps.collect();
        let by_event: BTreeMap<_, _> = steps.iter().flat_map(lines).collect();
        assert_eq!(by_event, lines(encoded));
        let lettered = steps.iter().flat_map(|step| &step.lettered);
        assert!(lettered.eq(&encoded.lettered));
        let skipped = steps.iter().flat_map(|step| &step.skipped);
        assert!(skipped.eq(&encoded.skipped));
    }

    /// What is settled and what is not give the same as chunks of their own.
    fn check_extracted(&self, items: &[Item]) {
        let chunk_of = |event: u32| usize::from(self.settled.contains(event));
        let copies = extract(self.chunk, 2, |event| Some(chunk_of(event)));
        for (at, extracted) in copies.into_iter().enumerate() {
            let numbers: Vec<u32> = extracted.taken.iter().cloned().flatten().collect();
            assert_eq!(numbers.len(), extracted.events as usize);
            let is_in = |(event, item): &(u32, &Item)| {
                matches!(item, Item::Event(_)) && chunk_of(*event) == at
            };
            let expected = (0..).zip(items).filter(is_in).map(|(event, _)| event);
            assert!(expected.eq(numbers.iter().copied()), "events were lost");

            let copy = self.given(&extracted.data, |_| true, |event| numbers[event as usize]);
            let original = self.given(
                self.chunk,
                |event| numbers.binary_search(&event).is_ok(),
                |event| event,
            );
            assert_eq!(copy, original, "an event differs in a chunk of its own");
        }
    }

    /// The lines, letters and skipped events of all steps of a chunk, by the numbers that the events have elsewhere.
    fn given(
        &self,
        chunk: &[u8],
        wanted: impl Fn(u32) -> bool,
        number: impl Fn(u32) -> u32,
    ) -> Given {
        let encoding = Encoding {
            step_bytes: 1 << 30,
            ..Encoding::new(&self.options, &self.names)
        };
        let mut next = Some(Place::default());
        let (tag, mut given) = (TAG.into(), Given::default());
        while let Some(from) = next {
            let step = encoding
                .step(&tag, chunk, from, usize::MAX, &wanted)
                .expect("memory is unlimited");
            next = step.next;
            let lines = lines(&step)
                .into_iter()
                .map(|(event, (name, line))| (number(event), (name.to_owned(), line.to_vec())));
            given.lines.extend(lines);
            let firsts = step
                .parts
                .iter()
                .map(|part| (part.name.clone(), part.first));
            given.firsts.extend(firsts);
            given
                .skipped
                .extend(step.skipped.iter().map(|event| number(*event)));
            for (event, letter) in step.lettered.iter().zip(&step.letters) {
                let mut detail = letter.detail.clone();
                if let (Reason::Malformed, Some((bytes, rest))) =
                    (letter.reason, detail.split_once(" at offset "))
                {
                    let (_, reason) = rest.split_once(" of a chunk: ").expect("a reason");
                    detail = format!("{bytes}: {reason}");
                }
                let record = letter.record.to_bytes().to_vec();
                given.letters.push((number(*event), detail, record));
            }
        }
        given
    }

    fn check_line(&self, line: &[u8], event: &Event) {
        if let Some(key) = &self.options.log_key {
            return reference::check_log_value(line, &self.options, key, event);
        }
        assert!(!line.contains(&b'\n'), "one line is two");
        let text = std::str::from_utf8(line).expect("UTF-8");
        let read: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(read.is_object(), "{text}");
        assert!(
            reference::json_depth(&read) <= MAX_DEPTH,
            "deeper than allowed: {text}"
        );
        reference::check_own_keys(&self.options, text);
        if let Some(expected) = reference::line(&self.options, TAG, event) {
            assert_eq!(read, expected, "{text}");
        }
    }
}

/// What a chunk's encoding gives, but for the offsets that letters name.
#[derive(Debug, Default, PartialEq)]
struct Given {
    lines: BTreeMap<u32, (String, Vec<u8>)>,
    firsts: BTreeMap<String, Time>,
    letters: Vec<(u32, String, Vec<u8>)>,
    skipped: Vec<u32>,
}

fn key_of_time(options: &Options) -> Option<String> {
    options.time.as_ref().map(|(key, _)| key.clone())
}

fn strftime(format: &str) -> TimeFormat {
    Strftime::parse(format).map_or(TimeFormat::Iso8601, TimeFormat::Strftime)
}

/// Every line by its event's number.
fn lines(encoded: &Encoded) -> BTreeMap<u32, (&str, &[u8])> {
    let parts = encoded.parts.iter().flat_map(|part| {
        let starts = std::iter::once(0).chain(part.ends.iter().copied());
        let lines = starts
            .zip(&part.ends)
            .map(|(start, end)| (&*part.name, &part.text[start..*end]));
        part.events.iter().copied().zip(lines)
    });
    parts.collect()
}

/// Events and malformed bytes lie in the chunk one behind the other, and between them only marks of groups.
fn every_byte_is_accounted_for(chunk: &[u8], items: &[Item]) {
    let mut at = 0;
    for item in items {
        let (bytes, start) = match item {
            Item::Event(event) => {
                reference::check_event(event);
                (
                    event.raw,
                    event.raw.as_ptr() as usize - chunk.as_ptr() as usize,
                )
            }
            Item::Malformed { bytes, offset, .. } => (*bytes, *offset),
        };
        assert!(!bytes.is_empty());
        assert_eq!(bytes, &chunk[start..start + bytes.len()]);
        reference::check_marks(&chunk[at..start]);
        at = start + bytes.len();
    }
    reference::check_marks(&chunk[at..]);
}

/// As far as the chunk is a row of whole events, nothing in it is malformed.
fn whole_events_at_the_front_are_read(chunk: &[u8], items: &[Item]) {
    let whole = reference::events_at_the_front(chunk);
    let read = items
        .iter()
        .take_while(|item| matches!(item, Item::Event(_)));
    let read = read.count();
    assert!(read >= whole, "{whole} whole events, {read} read");
}
