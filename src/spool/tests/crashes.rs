//! Kept chunks survive faults and crashes at any call.

use proptest::prelude::*;

use super::model::{End, Model, Op, Part, ops};
use super::*;

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn nothing_kept_is_lost_and_nothing_refused_is_kept(ops in ops(), seed in any::<u64>()) {
        let options = Options {
            limit: 24 * 1024,
            segment_bytes: Some(2_048 + seed % 4_096),
        };
        let mut model = Model::new(seed, options);
        for op in &ops {
            model.step(op);
        }
        model.conclude();
    }
}

/// All operations of a spool, in a few steps.
fn script() -> Vec<Op> {
    use Durability::{Synced, Written};
    let append = |len| Op::Append { len };
    let finish = |pick, noted| Op::Finish { pick, noted };
    let relocate = |picks: &[(usize, Part)], len, finish| Op::Relocate {
        picks: picks.to_vec(),
        len,
        finish,
    };
    Vec::from([
        append(300),
        append(700),
        Op::Begin {
            picks: Vec::from([(0, Part::All), (1, Part::Run(0, 2))]),
            durability: Synced,
        },
        append(900),
        Op::Settle {
            pick: 2,
            part: Part::Run(1, 3),
            durability: Written,
        },
        append(100),
        Op::End {
            pick: 0,
            whole: true,
            durability: Written,
        },
        finish(0, None),
        append(3_000),
        append(400),
        Op::Begin {
            picks: Vec::from([(0, Part::Run(2, 2)), (1, Part::All)]),
            durability: Written,
        },
        relocate(&[(0, Part::Run(4, 2)), (1, Part::All)], 200, true),
        finish(0, Some(Written)),
        finish(0, Some(Synced)),
        Op::End {
            pick: 0,
            whole: false,
            durability: Synced,
        },
        append(800),
        Op::Restart {
            how: End::Kill,
            faulty: false,
        },
        Op::Again { pick: 3 },
        append(1_200),
        Op::Again { pick: 0 },
        append(1_200),
        relocate(&[(0, Part::All)], 900, false),
        relocate(&[(1, Part::All), (2, Part::Run(0, 1))], 1_900, true),
        finish(0, Some(Written)),
        finish(0, Some(Written)),
        append(600),
        Op::Restart {
            how: End::Close,
            faulty: false,
        },
        append(500),
        finish(1, Some(Written)),
        finish(0, Some(Written)),
        append(700),
        finish(0, Some(Written)),
        finish(0, Some(Written)),
        finish(0, Some(Synced)),
    ])
}

#[test]
fn the_power_may_fail_at_any_call() {
    let options = Options {
        limit: 24 * 1024,
        segment_bytes: Some(2_048),
    };
    let ops = script();
    let runs = 1 + ops
        .iter()
        .filter(|op| matches!(op, Op::Restart { .. }))
        .count();
    let mut crashes = 0;
    // Calls are counted from the start of a run, so each run has its turn.
    for run in 0..runs {
        for at in 0.. {
            let mut crashed = false;
            for seed in 0..8 {
                let mut model = Model::new(seed, options);
                crashed |= run_until_crash(&mut model, &ops, run, at);
                crashes += 1;
                model.conclude();
            }
            if !crashed {
                break;
            }
        }
    }
    assert!(crashes > 800, "{crashes}");
}

/// Runs a script until the power is cut at a call of a run. Returns whether that happened.
fn run_until_crash(model: &mut Model, ops: &[Op], run: usize, at: u64) -> bool {
    model.crash_at(run, at);
    for op in ops {
        model.step(op);
        if model.has_crashed() {
            return true;
        }
    }
    false
}
