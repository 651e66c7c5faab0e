//! Damaged files: the rest is delivered, and no damage prevents a spool from opening.

use proptest::prelude::*;
use rand::RngCore as _;

use super::*;

/// A way to damage a file. Positions are fractions of its length, in 1/65,536.
#[derive(Clone, Debug)]
enum Harm {
    /// Some bytes change.
    Rot { at: u16, len: usize },
    /// The file is truncated.
    Cut { at: u16 },
    /// The file is replaced by garbage.
    Garbage { len: usize },
    /// Garbage is appended.
    Tail { len: usize },
    /// The file is removed.
    Gone,
    /// The file is emptied.
    Empty,
}

fn harms() -> impl Strategy<Value = Vec<(usize, Harm)>> {
    let harm = prop_oneof![
        5 => (any::<u16>(), 1usize..300).prop_map(|(at, len)| Harm::Rot { at, len }),
        5 => (any::<u16>(), Just(1usize)).prop_map(|(at, len)| Harm::Rot { at, len }),
        2 => any::<u16>().prop_map(|at| Harm::Cut { at }),
        1 => (1usize..9_000).prop_map(|len| Harm::Garbage { len }),
        1 => (1usize..2_000).prop_map(|len| Harm::Tail { len }),
        1 => Just(Harm::Gone),
        1 => Just(Harm::Empty),
    ];
    proptest::collection::vec((any::<usize>(), harm), 1..5)
}

impl Harm {
    /// Damages a file. Returns the range of bytes affected.
    fn apply(&self, sim: &Sim, name: &str, rng: &mut StdRng) -> Range<usize> {
        let mut bytes = sim.contents(name);
        let place = |at: u16| bytes.len() * usize::from(at) / 65_536;
        let end = bytes.len();
        let harmed = match self {
            Harm::Rot { at, len } => place(*at)..(place(*at) + len).min(end),
            Harm::Cut { at } => place(*at)..end,
            Harm::Tail { .. } => end..end,
            Harm::Garbage { .. } | Harm::Gone | Harm::Empty => 0..end,
        };
        match self {
            Harm::Rot { .. } => {
                for byte in &mut bytes[harmed.clone()] {
                    *byte ^= rng.random_range(1..=255);
                }
            }
            Harm::Cut { .. } | Harm::Gone | Harm::Empty => bytes.truncate(harmed.start),
            Harm::Garbage { len } => {
                bytes = vec![0; *len];
                rng.fill_bytes(&mut bytes);
            }
            Harm::Tail { len } => {
                bytes.resize(end + len, 0);
                rng.fill_bytes(&mut bytes[end..]);
            }
        }
        match self {
            Harm::Gone => sim.take(name),
            _ => sim.put(name, bytes),
        }
        harmed
    }
}

/// For each chunk's frame: segment, byte range, data.
type Frames = Vec<(String, Range<usize>, Vec<u8>)>;

/// A spool with chunks in several segments, closed.
fn filled(sizes: &[usize], seed: u64) -> (Bench, Frames) {
    let (mut bench, _) = Bench::on(Sim::new(seed), SMALL);
    for (index, size) in sizes.iter().enumerate() {
        let mut data = index.to_le_bytes().to_vec();
        data.resize(8 + size, index as u8);
        assert!(matches!(bench.append(b"t", &data), Ok(Appended::Kept)));
        if index % 3 == 1 {
            let (chunk, _) = bench.visible()[index];
            let events = [runs(chunk, &[(1, 3)])];
            bench
                .note(begun(index as u64, &events), Durability::Written)
                .unwrap();
        }
    }
    let places: Vec<Place> = bench
        .spool()
        .shared
        .state()
        .chunks
        .values()
        .copied()
        .collect();
    let frames = places.iter().map(|place| {
        let start = place.frame() as usize;
        let end = place.offset as usize + (place.tag_len + place.data_len) as usize;
        let name = segment_name(place.segment);
        let data = bench.sim.contents(&name)[place.offset as usize + 1..end].to_vec();
        (name, start..end, data)
    });
    let frames = frames.collect();
    bench.spool().close();
    bench.end(false);
    (bench, frames)
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn damage_costs_the_chunks_it_hits_and_no_others(
        sizes in proptest::collection::vec(0usize..1_800, 1..16),
        harms in harms(),
        seed in any::<u64>(),
    ) {
        let (mut bench, frames) = filled(&sizes, seed);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut damaged = Vec::new();
        for (pick, harm) in &harms {
            let segments = bench.segments();
            if let Some(name) = segments.get(pick % segments.len().max(1)) {
                damaged.push((name.clone(), harm.apply(&bench.sim, name, &mut rng)));
            }
        }
        let hit = |(name, range, _): &&(String, Range<usize>, Vec<u8>)| {
            damaged.iter().any(|(file, harmed)| {
                file == name && harmed.start < range.end && range.start < harmed.end
            })
        };
        let intact: Vec<&Vec<u8>> = frames.iter().filter(|f| !hit(f)).map(|(.., data)| data).collect();
        let mut known: Vec<Vec<u8>> = frames.iter().map(|(.., data)| data.clone()).collect();
        // Repeatedly: recovery must be stable.
        for run in 0..3 {
            bench.open().unwrap();
            let mut delivered = Vec::new();
            let mut after = None;
            while let Some((seq, stored)) = next(bench.spool(), after) {
                after = Some(seq);
                match stored {
                    Ok(stored) => delivered.push(stored.data.to_vec()),
                    Err(Unreadable::Corrupt { words, kept }) => {
                        prop_assert!(kept && words.contains("quarantine/"), "{words}");
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            for data in &intact {
                prop_assert!(delivered.contains(data), "run {run}: chunk {} is lost", data[0]);
            }
            for data in &delivered {
                prop_assert!(known.contains(data), "run {run}: a chunk that was never written");
            }
            bench.spool().wait_until_idle();
            prop_assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
            prop_assert!(matches!(bench.append(b"new", &[run]), Ok(Appended::Kept | Appended::Replayed)));
            let (_, newest) = bench.visible().pop().unwrap();
            prop_assert_eq!(&newest.tag[..], b"new");
            known.push(Vec::from([run]));
            bench.end(run == 1);
        }
    }

    #[test]
    fn a_directory_with_any_contents_is_opened(
        files in proptest::collection::vec(
            (0u64..5, proptest::collection::vec(any::<u8>(), 0..3_000)),
            0..5,
        ),
        other in "[a-z0-9.]{1,12}",
    ) {
        let sim = Sim::new(1);
        sim.put(&other, vec![1, 2, 3]);
        for (number, bytes) in &files {
            // The last two are no valid segment numbers.
            let first = [0, 1, 17, (1 << 63) - 1, u64::MAX][*number as usize];
            sim.put(&segment_name(first), bytes.clone());
        }
        let (bench, _) = Bench::on(sim, SMALL);
        bench.spool().wait_until_idle();
        prop_assert_eq!(bench.sim.contents(&other), [1, 2, 3]);
        prop_assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
    }
}

/// A closed spool of three chunks in one segment, and the offsets of their frames.
fn three_chunks() -> (Bench, String, Vec<usize>) {
    let (bench, frames) = filled(&[100, 100, 100], 1);
    let name = frames[0].0.clone();
    let offsets = frames.iter().map(|(_, range, _)| range.start).collect();
    (bench, name, offsets)
}

#[test]
fn a_torn_tail_is_truncated_and_reported() {
    let (mut bench, name, offsets) = three_chunks();
    let bytes = bench.sim.contents(&name);
    for end in [
        offsets[2] + 1,
        offsets[2] + 64,
        offsets[2] + 100,
        bytes.len() - 8,
    ] {
        bench.sim.put(&name, bytes[..end].to_vec());
        let recovered = bench.open().unwrap();
        let [finding] = &recovered.findings[..] else {
            panic!("{:?}", recovered.findings);
        };
        let expected = format!("{name} was truncated from {end} to {} bytes", offsets[2]);
        assert!(finding.starts_with(&expected), "{finding}");
        assert_eq!(bench.bytes(), [0, 1]);
        assert_eq!(bench.sim.contents(&name).len(), offsets[2]);
        assert_eq!(
            bench.sim.files().len(),
            1,
            "unacknowledged bytes are not quarantined"
        );
        // It is continued at its new end.
        bench.keep(9, 10);
        assert_eq!(bench.sim.files().len(), 1);
        assert_eq!(bench.restart().findings, [] as [String; 0]);
        assert_eq!(bench.bytes(), [0, 1, 9]);
        bench.end(false);
    }
}

#[test]
fn a_last_frame_counts_without_its_padding() {
    let (mut bench, name, _) = three_chunks();
    let bytes = bench.sim.contents(&name);
    bench.sim.put(&name, bytes[..bytes.len() - 1].to_vec());
    for byte in [8, 9] {
        assert_eq!(bench.open().unwrap().findings, [] as [String; 0]);
        assert_eq!(bench.bytes()[..3], [0, 1, 2]);
        bench.keep(byte, 10);
        bench.end(true);
    }
    assert_eq!(bench.open().unwrap().findings, [] as [String; 0]);
    assert_eq!(bench.bytes(), [0, 1, 2, 8, 9]);
}

#[test]
fn a_damaged_frame_in_the_middle_is_quarantined_and_reading_continues() {
    let (mut bench, name, offsets) = three_chunks();
    let (from, to) = (offsets[1], offsets[2]);
    let whole = bench.sim.contents(&name);
    // In its header, and in its payload.
    for at in [from + 3, from + 80] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bench.sim.put(&name, bytes.clone());
        let recovered = bench.open().unwrap();
        let kept = format!("quarantine/{}-{from}.bin", name.trim_end_matches(".seg"));
        let [finding] = &recovered.findings[..] else {
            panic!("{:?}", recovered.findings);
        };
        assert!(
            finding.contains(&name) && finding.contains(&kept),
            "{finding}"
        );
        assert!(finding.contains(&format!("at offset {from}")), "{finding}");
        let quarantined = bench.sim.contents(&kept);
        assert!(bytes[from..to].starts_with(&quarantined));
        assert!(quarantined.len() > 170, "{}", quarantined.len());
        assert_eq!(bench.bytes(), [0, 2]);
        // Reported once.
        bench.keep(9, 10);
        assert_eq!(bench.restart().findings, [] as [String; 0]);
        assert_eq!(bench.bytes(), [0, 2, 9]);
        bench.end(false);
        for (name, _) in [bench.sim.files(), bench.sim.side_files()].concat() {
            bench.sim.take(&name);
        }
    }
}

#[test]
fn a_damaged_chunk_in_an_older_segment_is_found_when_read_and_accepted_again() {
    let (mut bench, frames) = filled(&[1_500; 6], 1);
    let (name, range, data) = frames[1].clone();
    let mut bytes = bench.sim.contents(&name);
    bytes[range.end - 1] ^= 1;
    bench.sim.put(&name, bytes);
    let recovered = bench.open().unwrap();
    assert_eq!((recovered.unfinished, recovered.findings.len()), (6, 0));
    let (first, _) = next(bench.spool(), None).unwrap();
    let (rotten, found) = next(bench.spool(), Some(first)).unwrap();
    let Err(Unreadable::Corrupt { words, kept: true }) = found else {
        panic!("{found:?}");
    };
    assert!(
        words.contains(&name) && words.contains("quarantine/"),
        "{words}"
    );
    assert_eq!(bench.visible().len(), 5);
    assert!(matches!(
        bench.spool().read(rotten),
        Err(Unreadable::Finished)
    ));
    bench.spool().wait_until_idle();
    assert_eq!(bench.spool().usage().bytes, bench.sim.bytes());
    // It is accepted when the host hands it over again.
    assert_eq!(bench.append(b"t", &data).unwrap(), Appended::Kept);
    assert_eq!(bench.visible().len(), 6);
    // The next run does not report it again.
    let recovered = bench.restart();
    assert_eq!((recovered.unfinished, recovered.findings.len()), (6, 0));
}

#[test]
fn a_read_error_is_not_corruption() {
    let mut bench = Bench::new(SMALL);
    bench.keep(1, 10);
    let failing = sim::Faults {
        broken: Vec::from([sim::Call::Read]),
        ..Default::default()
    };
    bench.sim.fault(failing.clone());
    let (chunk, found) = next(bench.spool(), None).unwrap();
    assert!(matches!(found, Err(Unreadable::Disk(_))), "{found:?}");
    bench.sim.fault(sim::Faults::default());
    assert_eq!(bench.spool().read(chunk).unwrap().data, vec![1; 10]);
    // Nor does a spool open on such a disk, which would lose the contents.
    bench.end(false);
    bench.sim.fault(failing);
    let error = bench.open().unwrap_err().to_string();
    assert!(
        error.contains(&segment_name(1)) && error.contains("is then not delivered"),
        "{error}"
    );
    bench.sim.fault(sim::Faults::default());
    assert_eq!(bench.open().unwrap().unfinished, 1);
}

#[test]
fn an_empty_segment_file_voids_nothing_even_if_it_cannot_be_removed() {
    let (mut bench, name, _) = three_chunks();
    let next = bench
        .open()
        .map(|_| bench.spool().peek(None).unwrap().0 + 6)
        .unwrap();
    bench.end(false);
    let empty = segment_name(next);
    bench.sim.put(&empty, Vec::new());
    bench.sim.fault(sim::Faults {
        broken: Vec::from([sim::Call::Remove]),
        ..Default::default()
    });
    // Frames with its number and later ones are in the segment before it.
    for round in 0..2 {
        bench.open().unwrap();
        for byte in 0..3 {
            bench.keep(10 * round + 10 + byte, 10);
        }
        bench.end(true);
    }
    bench.sim.put(&empty, Vec::new());
    bench.open().unwrap();
    assert_eq!(bench.bytes(), [0, 1, 2, 10, 11, 12, 20, 21, 22]);
    let places = bench.spool().shared.state().chunks.clone();
    assert!(places.keys().any(|chunk| *chunk >= next));
    assert!(
        places
            .values()
            .all(|place| segment_name(place.segment) == name)
    );
    assert_eq!(bench.segments(), [name]);
}

#[test]
fn segments_of_another_spool_and_of_another_version_are_left_alone() {
    let (mut bench, frames) = filled(&[100, 100], 1);
    let (other, _) = filled(&[200], 2);
    let name = frames[0].0.clone();
    // The foreign segment is the older one, and the newer one determines the spool.
    let foreign = segment_name(0);
    let bytes = other.sim.contents(&other.segments()[0]);
    bench.sim.put(&foreign, bytes.clone());
    let newer = segment_name(40);
    let own = bench.sim.contents(&name);
    let mut head = Head::decode(&own).unwrap();
    let mut payload = own[64..64 + head.data_len as usize].to_vec();
    payload[0] = 3;
    head.id = chunk_id(b"", &payload);
    bench.sim.put(
        &newer,
        [&head.encode()[..], &payload, b"what only it understands"].concat(),
    );
    let recovered = bench.open().unwrap();
    assert_eq!(recovered.findings.len(), 2, "{:?}", recovered.findings);
    assert!(
        recovered.findings[0].starts_with(&foreign),
        "{:?}",
        recovered.findings
    );
    assert!(
        recovered.findings[1].contains("version 3"),
        "{:?}",
        recovered.findings
    );
    assert_eq!(bench.bytes(), [0, 1]);
    for byte in 2..60 {
        bench.keep(byte, 200);
    }
    bench.finish_all();
    bench.spool().close();
    assert_eq!(bench.sim.contents(&foreign), bytes);
    assert!(
        bench
            .sim
            .contents(&newer)
            .ends_with(b"what only it understands")
    );
}

#[test]
fn a_frame_in_log_data_is_never_read_as_one() {
    let mut bench = Bench::new(SMALL);
    // A whole segment of another spool, and a frame in which only the spool's id is wrong.
    let (other, frames) = filled(&[50, 50], 7);
    let mut logged = other.sim.contents(&frames[0].0);
    let finished = note::encode(&done(2));
    let head = Head {
        kind: Kind::Note,
        number: 9,
        spool: bench.spool().id() ^ 1,
        tag_len: 0,
        data_len: finished.len() as u32,
        arrived: Time::default(),
        id: chunk_id(b"", &finished),
    };
    logged.extend(head.encode());
    logged.extend(finished);
    for pad in 0..8 {
        bench
            .append(b"app.log", &[&vec![b' '; pad], &logged[..]].concat())
            .unwrap();
    }
    bench.keep(8, 10);
    bench.end(false);
    // Damage the headers, so that recovery searches the payloads for frames.
    for name in bench.segments() {
        let bytes = bench.sim.contents(&name);
        let mut rotten = bytes.clone();
        let mut at = 0;
        while let Some(head) = Head::decode(&bytes[at..]) {
            if head.kind == Kind::Chunk && head.data_len > 100 {
                rotten[at] ^= 1;
            }
            at += head.length() as usize;
        }
        bench.sim.put(&name, rotten);
    }
    bench.open().unwrap();
    assert_eq!(bench.bytes(), [8]);
}
