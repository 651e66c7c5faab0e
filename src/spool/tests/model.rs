//! A model of a spool's users: a host that hands chunks over until they are accepted, a pipeline that writes notes and
//! finishes chunks, and the guarantees of both after a crash.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::spool::frame::segment_first;
use crate::spool::note::Ledger;
use crate::spool::sim::Faults;

/// A step of the model. Picks are taken modulo the number of candidates.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// The host hands over a new chunk.
    Append { len: usize },
    /// The host hands over a chunk again: one that was refused, or accepted by an earlier run.
    Again { pick: usize },
    /// A batch of some visible chunks begins.
    Begin {
        picks: Vec<(usize, Part)>,
        durability: Durability,
    },
    /// A pending batch ends.
    End {
        pick: usize,
        whole: bool,
        durability: Durability,
    },
    /// Some events of a visible chunk are settled.
    Settle {
        pick: usize,
        part: Part,
        durability: Durability,
    },
    /// Some events of visible chunks are relocated, and perhaps a chunk of which nothing is left is finished.
    Relocate {
        picks: Vec<(usize, Part)>,
        len: usize,
        finish: bool,
    },
    /// A visible chunk is finished.
    Finish {
        pick: usize,
        noted: Option<Durability>,
    },
    /// The run ends and another begins, with a failing disk at first if `faulty`.
    Restart { how: End, faulty: bool },
    /// From here on one call in `one_in` fails; 0: none.
    Fail { one_in: u32 },
    /// From here on the disk's capacity is limited.
    Room { bytes: u64 },
    /// A segment is removed.
    Hide { pick: usize },
    /// Removed segments are put back, unless they were restored meanwhile.
    PutBack,
    /// The directory is moved away from its path, or back.
    Away { away: bool },
    /// A look is requested.
    Look,
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By a power cut.
    Crash,
    /// By a kill of the process.
    Kill,
    /// In good order.
    Close,
}

/// A selection of events.
#[derive(Clone, Debug)]
pub(super) enum Part {
    All,
    Run(u32, u32),
}

impl Part {
    fn of(&self, chunk: Seq) -> Content {
        match self {
            Part::All => all(chunk),
            Part::Run(start, len) => runs(chunk, &[(*start, start + len)]),
        }
    }
}

pub(super) fn ops() -> impl Strategy<Value = Vec<Op>> {
    let durability = || prop_oneof![Just(Durability::Written), Just(Durability::Synced)];
    let part = || {
        prop_oneof![
            1 => Just(Part::All),
            3 => (0u32..9, 1u32..4).prop_map(|(start, len)| Part::Run(start, len)),
        ]
    };
    let len = prop_oneof![8 => 0usize..300, 2 => 300usize..2_000, 1 => Just(5_000)];
    let relocated = prop_oneof![8 => 0usize..300, 2 => 300usize..2_000];
    let oldest = prop_oneof![3 => Just(0), 1 => any::<usize>()];
    let end = prop_oneof![2 => Just(End::Crash), 1 => Just(End::Kill), 1 => Just(End::Close)];
    let op = prop_oneof![
        12 => len.prop_map(|len| Op::Append { len }),
        5 => any::<usize>().prop_map(|pick| Op::Again { pick }),
        4 => (proptest::collection::vec((any::<usize>(), part()), 1..3), durability())
            .prop_map(|(picks, durability)| Op::Begin { picks, durability }),
        4 => (any::<usize>(), any::<bool>(), durability())
            .prop_map(|(pick, whole, durability)| Op::End { pick, whole, durability }),
        3 => (any::<usize>(), part(), durability())
            .prop_map(|(pick, part, durability)| Op::Settle { pick, part, durability }),
        4 => (
            proptest::collection::vec((oldest.clone(), part()), 1..3),
            relocated,
            any::<bool>(),
        )
            .prop_map(|(picks, len, finish)| Op::Relocate { picks, len, finish }),
        8 => (oldest, proptest::option::of(durability()))
            .prop_map(|(pick, noted)| Op::Finish { pick, noted }),
        4 => (end, any::<bool>()).prop_map(|(how, faulty)| Op::Restart { how, faulty }),
        2 => prop_oneof![2 => Just(0), 1 => 2u32..6, 1 => 6u32..40]
            .prop_map(|one_in| Op::Fail { one_in }),
        1 => (500u64..20_000).prop_map(|bytes| Op::Room { bytes }),
        2 => any::<usize>().prop_map(|pick| Op::Hide { pick }),
        2 => Just(Op::PutBack),
        1 => any::<bool>().prop_map(|away| Op::Away { away }),
        3 => Just(Op::Look),
    ];
    proptest::collection::vec(op, 1..70)
}

/// A chunk as the host knows it. No two have the same bytes.
#[derive(Clone, Debug, Default)]
struct Parcel {
    data: Vec<u8>,
    /// It was acknowledged. The host knows nothing of relocated ones, and never hands them over.
    taken: bool,
    /// It was made by a relocation.
    relocated: bool,
    /// It was refused since the last sync: the next run may find it.
    may_reappear: bool,
    /// Its number, if it is or was in the spool.
    seq: Option<Seq>,
    /// Not visible in this run.
    finished: bool,
    /// Not visible in any run.
    gone: bool,
}

/// A note that was written.
#[derive(Clone, Debug)]
struct Noted {
    /// Of a relocation: what it settles.
    note: Note,
    /// The parcel that a relocation made, which exists if and only if this note does.
    relocated: Option<usize>,
    /// It survives a crash.
    durable: bool,
    /// It was acknowledged.
    acknowledged: bool,
}

/// The maximum number of notes that may or may not survive a crash, since all their combinations are tried.
const MAX_UNSYNCED: usize = 9;

/// A spool on a faulty disk, and its expected state.
pub(super) struct Model {
    bench: Bench,
    parcels: Vec<Parcel>,
    notes: Vec<Noted>,
    /// Batches that may be ended.
    pending: Vec<u64>,
    next_batch: u64,
    /// Parcels in the order in which they were accepted.
    accepted: Vec<usize>,
    /// Parcels that this run must recognise.
    replayable: BTreeSet<usize>,
    /// Removed segments, and their files.
    hidden: Vec<(String, usize)>,
    /// The directory is away from its path.
    away: bool,
    /// The number of earlier runs.
    run: usize,
    /// The run and the call at which the power is cut.
    crash_at: Option<(usize, u64)>,
}

impl Model {
    pub(super) fn new(seed: u64, options: Options) -> Model {
        let (mut bench, recovered) = Bench::on(Sim::new(seed), options);
        // So few that later starts do not index everything at once.
        bench.indexed = 3;
        assert_eq!(recovered.unfinished, 0);
        Model {
            bench,
            parcels: Vec::new(),
            notes: Vec::new(),
            pending: Vec::new(),
            next_batch: 1,
            accepted: Vec::new(),
            replayable: BTreeSet::new(),
            hidden: Vec::new(),
            away: false,
            run: 0,
            crash_at: None,
        }
    }

    /// Cuts the power at a call of a run, counted from the start of that run.
    pub(super) fn crash_at(&mut self, run: usize, call: u64) {
        self.crash_at = Some((run, call));
        self.arm_crash();
    }

    fn arm_crash(&self) {
        if let Some((run, call)) = self.crash_at
            && run == self.run
        {
            self.sim().fault(Faults {
                down_at: Some(call),
                ..Faults::default()
            });
        }
    }

    /// Whether the planned power cut has happened.
    pub(super) fn has_crashed(&self) -> bool {
        self.crash_at.is_none() || self.sim().is_down()
    }

    pub(super) fn sim(&self) -> &Sim {
        &self.bench.sim
    }

    /// Does one step, and checks the state afterwards.
    pub(super) fn step(&mut self, op: &Op) {
        let written = match op {
            Op::Append { len } => {
                let mut data = self.parcels.len().to_le_bytes().to_vec();
                data.resize(8 + len, 0xab);
                self.parcels.push(Parcel {
                    data,
                    ..Parcel::default()
                });
                self.hand_over(self.parcels.len() - 1)
            }
            Op::Again { pick } => {
                let may =
                    |index: &usize| !self.parcels[*index].taken || self.replayable.contains(index);
                let again: Vec<usize> = (0..self.parcels.len()).filter(may).collect();
                choose(&again, *pick).is_some_and(|index| self.hand_over(index))
            }
            Op::Begin { picks, durability } => self.begin(picks, *durability),
            Op::End {
                pick,
                whole,
                durability,
            } => self.end(*pick, *whole, *durability),
            Op::Settle {
                pick,
                part,
                durability,
            } => choose(&self.visible(), *pick).is_some_and(|chunk| {
                let contents = Vec::from([part.of(chunk)]);
                self.write(Note::Done { contents }, *durability)
            }),
            Op::Relocate { picks, len, finish } => self.relocate(picks, *len, *finish),
            Op::Finish { pick, noted } => {
                if let Some(chunk) = choose(&self.visible(), *pick) {
                    self.finish(chunk, *noted);
                }
                false
            }
            Op::Restart { how, faulty } => {
                self.restart(*how, *faulty);
                false
            }
            Op::Fail { one_in } => {
                self.sim().fault(Faults {
                    one_in: *one_in,
                    ..Faults::default()
                });
                false
            }
            Op::Room { bytes } => {
                self.sim().fault(Faults {
                    capacity: Some(*bytes),
                    ..Faults::default()
                });
                false
            }
            Op::Hide { pick } => {
                let segments = self.bench.segments();
                if let Some(name) = segments.get(pick % segments.len().max(1)) {
                    let file = self.sim().hide(name).expect("it exists");
                    self.hidden.push((name.clone(), file));
                }
                false
            }
            Op::PutBack => {
                self.put_back();
                false
            }
            Op::Away { away } => {
                self.away = *away;
                self.sim().move_away(*away);
                false
            }
            Op::Look => {
                self.bench.spool().look();
                false
            }
        };
        self.bench.spool().wait_until_idle();
        if !self.sim().is_down() {
            let sim = self.sim().clone();
            sim.without_faults(|| self.check(written));
        }
    }

    /// Puts back removed segments that are still needed and were not restored meanwhile.
    fn put_back(&mut self) {
        // The file removed last wins.
        for (name, file) in std::mem::take(&mut self.hidden).into_iter().rev() {
            let first = segment_first(&name).expect("a segment");
            let is_needed = {
                let state = self.bench.spool().shared.state();
                state.segments.contains_key(&first)
            };
            if is_needed && !self.sim().has(&name) {
                self.sim().put_back(&name, file);
            }
        }
    }

    /// Hands over the remaining chunks until all are accepted, finishes them, and checks that nothing is left.
    pub(super) fn conclude(&mut self) {
        self.restart(End::Crash, false);
        for round in 0.. {
            let left: Vec<usize> = (0..self.parcels.len())
                .filter(|i| !self.parcels[*i].taken)
                .collect();
            for index in &left {
                self.hand_over(*index);
                self.bench.spool().wait_until_idle();
                self.check(false);
            }
            for chunk in self.visible() {
                self.finish(chunk, Some(Durability::Synced));
            }
            self.bench.spool().wait_until_idle();
            if left.is_empty() {
                break;
            }
            assert!(round < 100, "{} parcels are never accepted", left.len());
        }
        self.restart(End::Close, false);
        self.check(false);
        assert_eq!(self.spares().count(), 0);
        assert_eq!(self.visible(), [] as [Seq; 0]);
        assert_eq!(
            self.bench.segments().len(),
            usize::from(!self.accepted.is_empty() || !self.notes.is_empty())
        );
    }

    /// The numbers of the chunks that are visible in this run.
    fn visible(&self) -> Vec<Seq> {
        let visible = self.parcels.iter().filter(|parcel| !parcel.finished);
        let mut chunks: Vec<Seq> = visible.filter_map(|parcel| parcel.seq).collect();
        chunks.sort_unstable();
        chunks
    }

    fn with_seq(&mut self, chunk: Seq) -> &mut Parcel {
        let mut parcels = self.parcels.iter_mut();
        parcels.find(|parcel| parcel.seq == Some(chunk)).unwrap()
    }

    /// Returns whether it was written.
    fn hand_over(&mut self, index: usize) -> bool {
        let data = self.parcels[index].data.clone();
        let replayable = self.replayable.remove(&index);
        match self.bench.append(b"t", &data) {
            Ok(Appended::Replayed) => {
                assert!(replayable, "parcel {index} is not a replay");
                self.parcels[index].taken = true;
                false
            }
            answer if replayable => panic!("parcel {index} is in the spool: {answer:?}"),
            Ok(Appended::Kept) => {
                let limit = self.bench.options.limit;
                assert!(self.bench.spool().usage().bytes <= limit);
                self.synced();
                let last = self.parcels.iter().filter_map(|parcel| parcel.seq).max();
                let spool = self.bench.spool();
                spool.retry_reading();
                let next = self.sim().without_faults(|| spool.next(last));
                let (seq, len) = next.unwrap().expect("it is visible");
                assert_eq!(len, data.len());
                self.accepted.push(index);
                let parcel = &mut self.parcels[index];
                parcel.seq = Some(seq);
                parcel.taken = true;
                true
            }
            Err(Refusal::Full { bytes, limit }) => {
                let needed = bytes + data.len() as u64 + 4_000;
                assert!(needed > limit, "{bytes} bytes are not full");
                false
            }
            Err(Refusal::Disk(error)) => {
                assert!(self.sim().has_faulted() || self.away, "{error}");
                self.parcels[index].may_reappear = true;
                false
            }
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    fn begin(&mut self, picks: &[(usize, Part)], durability: Durability) -> bool {
        let visible = self.visible();
        let part = |(pick, part): &(usize, Part)| Some(part.of(choose(&visible, *pick)?));
        let contents: Vec<Content> = picks.iter().filter_map(part).collect();
        let batch = self.next_batch;
        if contents.is_empty() {
            return false;
        }
        self.next_batch += 1;
        let written = self.write(begun(batch, &contents), durability);
        if written {
            self.pending.push(batch);
        }
        written
    }

    fn end(&mut self, pick: usize, whole: bool, durability: Durability) -> bool {
        let Some(batch) = choose(&self.pending, pick) else {
            return false;
        };
        let contents = self.notes.iter().find_map(|noted| match &noted.note {
            Note::Begun {
                batch: begun,
                contents,
                ..
            } if *begun == batch => Some(contents.clone()),
            _ => None,
        });
        let first = || contents.unwrap().into_iter().take(1).collect();
        let delivered = (!whole).then(first);
        let written = self.write(Note::Ended { batch, delivered }, durability);
        if written {
            self.pending.retain(|pending| *pending != batch);
        }
        written
    }

    fn relocate(&mut self, picks: &[(usize, Part)], len: usize, finish: bool) -> bool {
        let visible = self.visible();
        let part = |(pick, part): &(usize, Part)| Some(part.of(choose(&visible, *pick)?));
        let origins: Vec<Content> = picks.iter().filter_map(part).collect();
        let unsynced = self.notes.iter().filter(|noted| !noted.durable).count();
        if origins.is_empty() || unsynced >= MAX_UNSYNCED {
            return false;
        }
        let mut data = self.parcels.len().to_le_bytes().to_vec();
        data.resize(8 + len, 0xcd);
        let relocation = Relocation {
            tag: b"t".to_vec(),
            data: data.clone().into(),
            arrived: Time::default(),
            origins: origins.clone(),
        };
        let spool = self.bench.spool();
        let before = spool.usage().bytes;
        let answer = self.bench.runtime.block_on(spool.relocate(relocation));
        let usage = spool.usage();
        let limit = usage.limit + usage.limit / 16;
        match &answer {
            Ok(seq) => {
                assert!(usage.bytes <= before.max(usage.limit) + usage.limit / 16);
                assert!(origins.iter().all(|origin| origin.chunk < *seq));
                assert!(spool.is_relocated(*seq));
            }
            Err(error) if error.kind() == ErrorKind::QuotaExceeded => {
                let needed = usage.bytes + len as u64 + 4_000;
                assert!(needed > limit, "{} bytes are not full", usage.bytes);
                return false;
            }
            Err(error) => assert!(self.sim().has_faulted() || self.away, "{error}"),
        }
        let acknowledged = answer.is_ok();
        self.notes.push(Noted {
            note: Note::Done {
                contents: origins.clone(),
            },
            relocated: Some(self.parcels.len()),
            durable: false,
            acknowledged,
        });
        self.parcels.push(Parcel {
            data,
            taken: true,
            relocated: true,
            may_reappear: !acknowledged,
            seq: answer.ok(),
            ..Parcel::default()
        });
        if acknowledged {
            self.synced();
            let settled = origins.iter().filter(|it| it.events == Events::All);
            for origin in settled.filter(|_| finish) {
                self.bench.spool().finish(origin.chunk);
                self.with_seq(origin.chunk).finished = true;
            }
        }
        acknowledged
    }

    fn finish(&mut self, chunk: Seq, noted: Option<Durability>) {
        if noted.is_none_or(|durability| self.write(done(chunk), durability)) {
            self.bench.spool().finish(chunk);
            self.with_seq(chunk).finished = true;
        }
    }

    /// Returns whether it was written.
    fn write(&mut self, note: Note, durability: Durability) -> bool {
        let unsynced = self.notes.iter().filter(|noted| !noted.durable).count();
        if unsynced >= MAX_UNSYNCED {
            return false;
        }
        let answer = self.bench.note(note.clone(), durability);
        let acknowledged = answer.is_ok();
        assert!(acknowledged || self.sim().has_faulted(), "{answer:?}");
        self.notes.push(Noted {
            note,
            relocated: None,
            durable: false,
            acknowledged,
        });
        if acknowledged && durability == Durability::Synced {
            self.synced();
        }
        acknowledged
    }

    /// Records a sync: what was acknowledged before is durable, and what failed is gone for good.
    fn synced(&mut self) {
        self.notes.retain(|noted| noted.acknowledged);
        for noted in &mut self.notes {
            noted.durable = true;
        }
        for parcel in &mut self.parcels {
            parcel.may_reappear = false;
        }
    }

    /// Checks all visible chunks and the usage.
    fn check(&self, written: bool) {
        let seen = self.bench.peeked();
        let numbers: Vec<Seq> = seen.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(numbers, self.visible());
        for (seq, stored) in &seen {
            let stored = match stored {
                Err(Unreadable::Missing(segment)) => {
                    let name = segment_name(*segment);
                    let is_hidden = self.hidden.iter().any(|(hidden, _)| *hidden == name);
                    assert!(is_hidden, "{name} exists");
                    continue;
                }
                read => read.as_ref().unwrap(),
            };
            let parcel = self
                .parcels
                .iter()
                .find(|parcel| parcel.seq == Some(*seq))
                .unwrap();
            assert_eq!(
                (&stored.tag[..], &stored.data[..]),
                (&b"t"[..], &parcel.data[..])
            );
        }
        let usage = self.bench.spool().usage();
        assert_eq!(usage.unfinished, seen.len() as u64);
        // The first chunk, or one that arrived before it and was relocated.
        if seen.iter().all(|(_, stored)| stored.is_ok()) {
            let is_relocated = |seq: &Seq| {
                let state = &self.bench.spool().shared.state();
                state.chunks[seq].is_relocated()
            };
            let relocated = seen.iter().skip(1).filter(|(seq, _)| is_relocated(seq));
            let oldest = seen.iter().take(1).chain(relocated);
            let oldest = oldest.filter_map(|(_, stored)| Some(stored.as_ref().ok()?.arrived));
            assert_eq!(usage.oldest, oldest.min());
        }
        // After a failed call a length may be unknown until the disk works again.
        let healthy = written && self.sim().faults() == Faults::default();
        let whole = self.hidden.is_empty();
        if whole && (healthy || !self.sim().has_faulted()) {
            assert_eq!(usage.bytes, self.sim().bytes(), "{:?}", self.sim().files());
        }
        if !self.sim().has_faulted() {
            let spares: u64 = self.spares().map(|(_, bytes)| bytes).sum();
            assert_eq!(self.bench.spool().shared.state().spares, spares);
            assert!(spares <= self.bench.options.limit / SPARE_SHARE);
        }
    }

    fn restart(&mut self, how: End, faulty: bool) {
        let mut clean = !self.sim().has_faulted();
        if how == End::Close {
            self.bench.spool().close();
        }
        clean &= !self.sim().has_faulted();
        self.put_back();
        self.away = false;
        self.bench.end(how == End::Crash);
        self.run += 1;
        if how == End::Close && clean {
            self.written_is_durable();
        }
        if faulty {
            self.sim().fault(Faults {
                one_in: 4,
                ..Faults::default()
            });
        }
        self.arm_crash();
        let recovered = self.bench.open();
        clean &= !self.sim().has_faulted();
        let recovered = recovered.unwrap_or_else(|error| {
            assert!(self.sim().has_faulted(), "{error}");
            if self.sim().is_down() {
                self.crash_at = None;
            }
            self.bench.end(self.sim().is_down());
            self.bench.open().unwrap()
        });
        if how == End::Kill && clean {
            self.written_is_durable();
        }
        self.sim().fault(Faults::default());
        self.arm_crash();
        self.reconcile(&recovered);
    }

    fn written_is_durable(&mut self) {
        for noted in &mut self.notes {
            noted.durable = noted.acknowledged;
        }
    }

    /// Checks that the recovered state can be explained, and adopts it.
    fn reconcile(&mut self, recovered: &Recovered) {
        let sim = self.sim().clone();
        let seen = sim.without_faults(|| self.bench.visible());
        assert_eq!(recovered.unfinished, seen.len() as u64);
        for (seq, stored) in &seen {
            let same = |parcel: &Parcel| parcel.data == stored.data;
            let index = self
                .parcels
                .iter()
                .position(same)
                .expect("a chunk that was handed over");
            let parcel = &mut self.parcels[index];
            if parcel.seq.is_none() {
                assert!(
                    parcel.may_reappear,
                    "parcel {index} was refused, and comes back"
                );
                parcel.seq = Some(*seq);
                if !parcel.relocated {
                    self.accepted.push(index);
                }
            }
            assert_eq!(parcel.seq, Some(*seq), "parcel {index} is there twice");
            assert!(!parcel.gone, "parcel {index} was gone");
        }
        let numbers: BTreeSet<Seq> = seen.iter().map(|(seq, _)| *seq).collect();

        let unsynced: Vec<usize> = (0..self.notes.len())
            .filter(|i| !self.notes[*i].durable)
            .collect();
        let explains = |chosen: &u32| {
            let survived = |index: &usize| match unsynced.iter().position(|i| i == index) {
                Some(bit) => chosen >> bit & 1 == 1,
                None => true,
            };
            self.explains(survived, recovered, &numbers)
        };
        let chosen = (0u32..1 << unsynced.len()).rev().find(explains);
        let Some(chosen) = chosen else {
            panic!(
                "recovered {recovered:?}\nsees {numbers:?}\nknows {:#?}",
                self.notes
            );
        };
        for (bit, index) in unsynced.iter().enumerate().rev() {
            if chosen >> bit & 1 == 0 {
                self.notes.remove(*index);
            }
        }
        for noted in &mut self.notes {
            (noted.durable, noted.acknowledged) = (true, true);
        }
        for parcel in &mut self.parcels {
            parcel.may_reappear = false;
            parcel.finished = parcel.seq.is_some_and(|seq| !numbers.contains(&seq));
            parcel.gone = parcel.finished;
        }
        self.pending = recovered
            .pending
            .iter()
            .map(|pending| pending.batch)
            .collect();
        self.next_batch = self.next_batch.max(recovered.next_batch);
        let window = Limits::new(self.bench.options).window;
        self.replayable = self.accepted.iter().rev().take(window).copied().collect();
        // Refused chunks that exist all the same are handed over first, and recognised: later they may not be.
        let is_back = |index: &usize| {
            let parcel = &self.parcels[*index];
            !parcel.taken && !parcel.finished && parcel.seq.is_some()
        };
        let back: Vec<usize> = self.replayable.iter().copied().filter(is_back).collect();
        for index in back {
            self.hand_over(index);
        }
    }

    /// The spares on the disk.
    fn spares(&self) -> impl Iterator<Item = (String, u64)> {
        let files = self.sim().files().into_iter();
        files.filter(|(name, _)| name.ends_with(".spare"))
    }

    /// Whether the recovered state is correct if exactly these notes survived.
    fn explains(
        &self,
        survived: impl Fn(&usize) -> bool,
        recovered: &Recovered,
        seen: &BTreeSet<Seq>,
    ) -> bool {
        let mut ledger = Ledger::default();
        for (index, noted) in self.notes.iter().enumerate() {
            let is_made = |parcel: usize| self.parcels[parcel].seq.is_some();
            // Either the new chunk exists and its origins are settled, or neither.
            if noted
                .relocated
                .is_some_and(|it| is_made(it) != survived(&index))
            {
                return false;
            }
            if survived(&index) {
                ledger.apply(noted.note.clone());
            }
        }
        let chunks_fit = self.parcels.iter().all(|parcel| match parcel.seq {
            None => true,
            Some(seq) if ledger.settled(seq) == Some(&Events::All) => !seen.contains(&seq),
            Some(seq) => parcel.finished || parcel.gone || seen.contains(&seq),
        });
        let settled = |chunk: &Seq| match ledger.settled(*chunk) {
            Some(Events::Runs(runs)) if !runs.is_empty() => Some((*chunk, runs.clone())),
            _ => None,
        };
        let settled: HashMap<_, _> = seen.iter().filter_map(settled).collect();
        chunks_fit
            && recovered.next_batch >= ledger.next_batch()
            && recovered.pending == ledger.pending(|chunk| seen.contains(&chunk))
            && recovered.settled == settled
    }
}

fn choose<T: Copy>(from: &[T], pick: usize) -> Option<T> {
    from.get(pick % from.len().max(1)).copied()
}
