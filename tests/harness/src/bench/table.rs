//! The results, and Ferry's goals.

use std::fmt;

use super::Outcome;
use super::grid::{Grid, stands};
use super::hash::Speeds;
use super::rows::{MEMORY_GOAL, NULL, Row};

/// The results of all rows.
pub(super) struct Table {
    rows: Vec<(Row, Outcome)>,
    /// The bytes of the lines that every output received.
    input_bytes: u64,
    speeds: Speeds,
}

impl Table {
    pub(super) fn new(rows: Vec<(Row, Outcome)>, input_bytes: u64, speeds: Speeds) -> Self {
        Self {
            rows,
            input_bytes,
            speeds,
        }
    }

    /// Whether each of Ferry's rows delivered every line exactly once.
    pub(super) fn ferry_is_exact(&self) -> bool {
        let mut ferry = self.rows.iter().filter(|(row, _)| row.goals.is_some());
        ferry.all(|(_, outcome)| outcome.arrived.is_exact())
    }

    fn find(&self, id: &str) -> Option<&Outcome> {
        let found = self.rows.iter().find(|(row, _)| row.id == id);
        found.map(|(_, outcome)| outcome)
    }

    fn beside(&self, row: &Row) -> Option<&Outcome> {
        self.find(row.goals?.0)
    }

    /// Returns the ratio of a value to that of the compared row.
    fn ratio(&self, row: &Row, of: impl Fn(&Outcome) -> f64) -> Option<f64> {
        let (this, beside) = (self.find(&row.id)?, self.beside(row)?);
        Some(of(this) / of(beside)).filter(|ratio| ratio.is_finite())
    }

    fn above_host(&self, outcome: &Outcome) -> Option<i64> {
        let host = self.find(NULL)?.cost.peak_memory;
        Some(outcome.cost.peak_memory.cast_signed() - host.cast_signed())
    }

    fn costs(&self) -> Grid {
        let mut grid = Grid::new(&[
            "output",
            "CPU s",
            "CPU s/GB",
            "of plugin's",
            "host's own CPU s",
            "of plugin's, levelled",
            "wall s",
            "peak MB",
            "above host MB",
            "lost",
            "twice",
        ]);
        for (row, outcome) in &self.rows {
            let (cpu, memory) = (cpu_seconds(outcome), outcome.cost.peak_memory as f64 / 1e6);
            let arrives = row.id != NULL;
            let count = |number: u64| arrives.then(|| number.to_string());
            grid.add([
                Some(row.title.clone()),
                Some(format!("{cpu:.2}")),
                Some(format!("{:.2}", cpu / (self.input_bytes as f64 / 1e9))),
                self.ratio(row, cpu_seconds)
                    .map(|ratio| format!("{ratio:.2}")),
                Some(format!("{:.2}", outcome.cost.cpu.host.as_secs_f64())),
                self.ratio(row, levelled_cpu)
                    .map(|ratio| format!("{ratio:.2}")),
                Some(format!("{:.1}", outcome.cost.wall.as_secs_f64())),
                Some(format!("{memory:.1}")),
                self.above_host(outcome)
                    .map(|bytes| format!("{:.1}", bytes as f64 / 1e6)),
                count(outcome.arrived.missing),
                count(outcome.arrived.duplicates),
            ]);
        }
        grid
    }

    fn deliveries(&self) -> Grid {
        let mut grid = Grid::new(&[
            "output",
            "requests",
            "records",
            "records/request",
            "payload MB",
            "on the wire MB",
            "billed MB",
            "billed/payload",
            "blobs",
            "stored MB",
            "of plugin's",
        ]);
        for (row, outcome) in self.rows.iter().filter(|(row, _)| row.id != NULL) {
            let totals = &outcome.arrived.totals;
            let streams = outcome.blobs == 0;
            let megabytes = |bytes: u64| Some(format!("{:.1}", bytes as f64 / 1e6));
            grid.add([
                Some(row.title.clone()),
                Some(outcome.requests.to_string()),
                streams.then(|| totals.records.to_string()),
                streams.then(|| format!("{:.1}", totals.records as f64 / outcome.requests as f64)),
                megabytes(totals.raw_bytes),
                megabytes(outcome.wire_bytes),
                megabytes(totals.billed_bytes).filter(|_| streams),
                billed_by_payload(outcome).map(|ratio| format!("{ratio:.3}")),
                (!streams).then(|| outcome.blobs.to_string()),
                megabytes(outcome.stored_bytes),
                self.ratio(row, stored).map(|ratio| format!("{ratio:.2}")),
            ]);
        }
        grid
    }

    /// Returns the CPU time without the hash, of the Firehose rows with plain lines.
    fn hashing(&self) -> Grid {
        let mut grid = Grid::new(&[
            "output",
            "hashed MB",
            "with",
            "MB/s",
            "hash s",
            "share of CPU",
            "the rest s",
            "of plugin's",
        ]);
        let mut rest_of_plugin = None;
        for (row, outcome) in &self.rows {
            let plain = row.id.starts_with("firehose-") || row.id.starts_with("ferry-");
            if !plain
                || row.id.contains("blob")
                || !(row.id.ends_with("none") || row.id.ends_with("lines"))
            {
                continue;
            }
            let (with, speed) = match row.goals {
                Some(_) => ("ring", Some(self.speeds.ring)),
                None => ("OpenSSL", self.speeds.openssl),
            };
            let cpu = cpu_seconds(outcome);
            let hash = speed.map(|speed| outcome.wire_bytes as f64 / speed);
            let rest = hash.map(|hash| cpu - hash);
            if row.id == "firehose-none" {
                rest_of_plugin = rest;
            }
            let ratio = row.goals.and(rest).zip(rest_of_plugin);
            let ratio = ratio.map(|(ours, plugins)| ours / plugins);
            grid.add([
                Some(row.title.clone()),
                Some(format!("{:.1}", outcome.wire_bytes as f64 / 1e6)),
                Some(with.to_owned()),
                speed.map(|speed| format!("{:.0}", speed / 1e6)),
                hash.map(|hash| format!("{hash:.2}")),
                hash.map(|hash| format!("{:.0}%", hash / cpu * 100.0)),
                rest.map(|rest| format!("{rest:.2}")),
                ratio.map(|ratio| format!("{ratio:.2}")),
            ]);
        }
        grid
    }

    fn goals(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (row, outcome) in &self.rows {
            let Some((_, goals)) = row.goals else {
                continue;
            };
            let mut goal = |what: &str, found: Option<f64>, most: f64| {
                if let Some(found) = found {
                    lines.push(stands(
                        found <= most,
                        &format!("{}: {what} {found:.3}, goal {most}", row.title),
                    ));
                }
            };
            goal(
                "CPU of the plugin's",
                self.ratio(row, cpu_seconds),
                goals.cpu,
            );
            let levelled = self.ratio(row, levelled_cpu);
            goal("CPU of the plugin's, levelled", levelled, goals.cpu);
            if let Some(most) = goals.stored {
                goal("size of the plugin's", self.ratio(row, stored), most);
            }
            if let Some(most) = goals.billed {
                goal("billed/payload", billed_by_payload(outcome), most);
            }
            let above = self.above_host(outcome).map(|bytes| bytes as f64 / 1e6);
            goal("MB above the host", above, MEMORY_GOAL as f64 / 1e6);
        }
        lines
    }
}

fn cpu_seconds(outcome: &Outcome) -> f64 {
    outcome.cost.cpu.output.as_secs_f64()
}

/// Returns the CPU time divided by that of the host's own threads. Those do the same work in every row, so the ratio
/// does not depend on what else slowed down a row, such as other programs.
fn levelled_cpu(outcome: &Outcome) -> f64 {
    cpu_seconds(outcome) / outcome.cost.cpu.host.as_secs_f64()
}

fn stored(outcome: &Outcome) -> f64 {
    outcome.stored_bytes as f64
}

fn billed_by_payload(outcome: &Outcome) -> Option<f64> {
    let totals = &outcome.arrived.totals;
    let ratio = totals.billed_bytes as f64 / totals.raw_bytes as f64;
    Some(ratio).filter(|ratio| ratio.is_finite() && outcome.blobs == 0)
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", self.costs(), self.deliveries())?;
        let hashing = self.hashing();
        if !hashing.rows.is_empty() {
            writeln!(
                f,
                "SHA-256 over the requests' bodies, estimated:\n\n{hashing}"
            )?;
        }
        for line in self.goals() {
            writeln!(f, "{line}")?;
        }
        for (row, outcome) in &self.rows {
            let arrived = &outcome.arrived;
            if row.id != NULL && !arrived.is_exact() {
                write!(
                    f,
                    "\n{}: not each line once and nothing else:\n{arrived}\n",
                    row.title
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::cpu::Cpu;
    use super::super::host::Cost;
    use super::super::rows;
    use super::*;
    use crate::ledger::Report;

    /// Returns a run that took a second and 10 MB, and delivered 100 MB of lines.
    pub(in super::super) fn outcome() -> Outcome {
        let mut arrived = Report::default();
        arrived.totals.records = 100;
        arrived.totals.raw_bytes = 100_000_000;
        arrived.totals.record_bytes = 100_000_000;
        arrived.totals.billed_bytes = 101_000_000;
        let cpu = Cpu {
            output: Duration::from_secs(1),
            host: Duration::from_secs(2),
            ..Cpu::default()
        };
        Outcome {
            cost: Cost {
                cpu,
                wall: Duration::from_secs(2),
                peak_memory: 10_000_000,
            },
            delivering: Duration::from_secs(1),
            arrived,
            requests: 25,
            wire_bytes: 140_000_000,
            blobs: 0,
            stored_bytes: 100_000_000,
        }
    }

    /// Returns a table of these rows; `change` modifies each result.
    fn table(ids: &[&str], change: impl Fn(&str, &mut Outcome)) -> Table {
        let chosen = rows::all()
            .into_iter()
            .filter(|row| ids.contains(&row.id.as_str()));
        let rows = chosen.map(|row| {
            let mut outcome = outcome();
            change(&row.id, &mut outcome);
            (row, outcome)
        });
        let speeds = Speeds {
            openssl: Some(400e6),
            ring: 350e6,
        };
        Table::new(rows.collect(), 100_000_000, speeds)
    }

    #[test]
    fn ferry_is_held_against_the_plugin_beside_it_and_the_bare_host() {
        let table = table(
            &["null", "firehose-none", "ferry-direct-none"],
            |id, outcome| {
                if id == "ferry-direct-none" {
                    outcome.cost.cpu.output = Duration::from_millis(800);
                    outcome.cost.cpu.host = Duration::from_millis(3_200);
                    outcome.cost.peak_memory = 80_000_000;
                }
            },
        );
        let text = table.to_string();
        for goal in [
            "MISSED  ferry, aggregated, none, direct: CPU of the plugin's 0.800, goal 0.75",
            "met     ferry, aggregated, none, direct: CPU of the plugin's, levelled 0.500, goal 0.75",
            "met     ferry, aggregated, none, direct: billed/payload 1.010, goal 1.02",
            "MISSED  ferry, aggregated, none, direct: MB above the host 70.000, goal 64",
        ] {
            assert!(text.contains(goal), "{goal}\n{text}");
        }
        // 140 MB at 400 MB/s leave 0.65 of the plugin's second, at 350 MB/s 0.4 of Ferry's 0.8.
        let hashing = table.hashing();
        assert_eq!(hashing.rows[0][4..], ["0.35", "35%", "0.65", ""]);
        assert_eq!(hashing.rows[1][4..], ["0.40", "50%", "0.40", "0.62"]);
    }

    #[test]
    fn a_row_that_did_not_run_leaves_its_ratios_empty() {
        let table = table(&["ferry-direct-gzip-1"], |_, _| {});
        let costs = table.costs();
        assert_eq!(costs.rows[0][3], "");
        assert_eq!(costs.rows[0][8], "");
        assert_eq!(table.goals(), Vec::<String>::new());
        assert!(table.ferry_is_exact());
    }

    #[test]
    fn a_line_that_ferry_lost_fails_the_bench_and_one_that_a_plugin_lost_is_shown() {
        let lossy = |whose: &'static str| {
            table(&["azure-none", "ferry-blob-none"], move |id, outcome| {
                outcome.blobs = 7;
                outcome.arrived.missing = u64::from(id == whose);
            })
        };
        let (plugin, ferry) = (lossy("azure-none"), lossy("ferry-blob-none"));
        assert!(plugin.ferry_is_exact());
        let text = plugin.to_string();
        assert!(
            text.contains("azure_blob, block blobs: not each line once"),
            "{text}"
        );
        assert!(!ferry.ferry_is_exact());
    }
}
