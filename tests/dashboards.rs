//! The dashboard and the alerts use existing metrics, labels and values.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ferry::metrics::{FAMILIES, Kind};
use serde_json::Value;

/// A metric of the host itself.
const OF_THE_HOST: &str = "fluentbit_output_dropped_records_total";

fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards")
}

/// The expressions of the dashboard, including its variables' queries.
fn dashboard() -> Vec<String> {
    let text = fs::read_to_string(dashboards().join("ferry.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut expressions = Vec::new();
    for panel in list(&json["panels"]) {
        for target in list(&panel["targets"]) {
            expressions.push(target["expr"].as_str().expect("an expression").to_owned());
        }
    }
    for variable in list(&json["templating"]["list"]) {
        expressions.extend(variable["definition"].as_str().map(str::to_owned));
    }
    expressions
}

/// The expressions of the alerts: the text from `expr:` to the next key.
fn alerts() -> Vec<String> {
    let text = fs::read_to_string(dashboards().join("alerts.yml")).unwrap();
    let rules = text.split("- alert: ").skip(1);
    let expression = |rule: &str| {
        let (_, rest) = rule.split_once("expr: ").expect("an expression");
        let end = rest.find("\n        labels:").expect("labels follow");
        let end = rest[..end].find("\n        for:").unwrap_or(end);
        rest[..end].trim_start_matches(">-").to_owned()
    };
    rules.map(expression).collect()
}

/// The metrics in an expression, with the text between their braces.
fn selectors(expression: &str) -> Vec<(String, String)> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for prefix in ["ferry_", "fluentbit_"] {
        for (at, _) in expression.match_indices(prefix) {
            if expression[..at].ends_with(word) {
                continue;
            }
            let rest = &expression[at..];
            let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
            let matchers = rest[end..]
                .strip_prefix('{')
                .and_then(|rest| rest.split_once('}'));
            let matchers = matchers.map_or("", |(matchers, _)| matchers);
            found.push((rest[..end].to_owned(), matchers.to_owned()));
        }
    }
    found
}

/// The mistakes in an expression.
fn faults(expression: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let found = selectors(expression);
    if found.is_empty() {
        faults.push(format!("no metric in {expression}"));
    }
    let mut labels: BTreeSet<&str> = ["job", "instance", "name"].into();
    for (metric, matchers) in &found {
        let base = metric.strip_suffix("_bucket").unwrap_or(metric);
        let (own, values): (&str, &[&str]) = match FAMILIES.iter().find(|one| one.name == base) {
            Some(family) => {
                if (base != metric.as_str()) != (family.kind == Kind::Histogram) {
                    faults.push(format!("{metric} is used as another type"));
                }
                family.label.unwrap_or_default()
            }
            None if metric == OF_THE_HOST => ("", &[]),
            None => {
                faults.push(format!("{metric} does not exist"));
                continue;
            }
        };
        labels.extend([own, if base == metric.as_str() { own } else { "le" }]);
        for matcher in matchers.split(',').filter(|matcher| !matcher.is_empty()) {
            let at = matcher.find(['=', '!']).expect("a matcher");
            let (label, value) = (
                &matcher[..at],
                matcher[at..].trim_matches(['=', '~', '!', '"']),
            );
            match label {
                "name" | "instance" | "job" => {}
                _ if label == own => {
                    let unknown = value.split('|').filter(|value| !values.contains(value));
                    faults.extend(unknown.map(|value| format!("{metric} has no {label} {value}")));
                }
                _ => faults.push(format!("{metric} has no label {label}")),
            }
        }
    }
    for grouped in expression.split("by (").skip(1) {
        let list = grouped.split(')').next().expect("a list").split(',');
        let unknown = list.map(str::trim).filter(|label| !labels.contains(label));
        faults.extend(unknown.map(|label| format!("nothing has the label {label}: {expression}")));
    }
    faults
}

#[test]
fn the_dashboard_and_the_alerts_use_existing_metrics_labels_and_values() {
    let (dashboard, alerts) = (dashboard(), alerts());
    assert!(dashboard.len() >= 30 && alerts.len() >= 13);
    let faults: Vec<_> = dashboard
        .iter()
        .chain(&alerts)
        .flat_map(|one| faults(one))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
    // Every metric must be on the dashboard.
    let shown: String = dashboard.concat();
    for family in FAMILIES {
        let metric = family.name;
        assert!(shown.contains(metric), "{metric} is not on the dashboard");
    }
}

#[test]
fn an_expression_with_a_mistake_is_found() {
    for wrong in [
        "ferry_request_total",
        "sum by (reason) (ferry_requests_total)",
        "ferry_requests_total{reason=\"ok\"}",
        "ferry_requests_total{result=~\"ok|okay\"}",
        "ferry_request_duration_seconds",
        "ferry_spool_bytes_bucket",
        "vector(1)",
    ] {
        assert!(!faults(wrong).is_empty(), "{wrong}");
    }
}

#[test]
fn promtool_accepts_the_rules_and_each_alert_fires() {
    let promtool = |folder: &Path, arguments: &[&str]| {
        Command::new("promtool")
            .args(arguments)
            .current_dir(folder)
            .output()
    };
    if promtool(&dashboards(), &["--version"]).is_err() {
        println!("skipped: promtool is not on the PATH (apt install prometheus)");
        return;
    }
    // Replace Grafana's variables by durations, and check the dashboard's expressions as recording rules.
    let dir = tempfile::tempdir().unwrap();
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    let queries = dashboard()
        .into_iter()
        .filter(|one| !one.starts_with("label_values"));
    for (number, expression) in queries.enumerate() {
        let expression = expression
            .replace("$__rate_interval", "5m")
            .replace("$__range", "1h");
        rules +=
            &format!("      - record: panel:{number}\n        expr: >-\n          {expression}\n");
    }
    fs::write(dir.path().join("dashboard.yml"), rules).unwrap();
    for (folder, arguments) in [
        (dir.path(), ["check", "rules", "dashboard.yml"]),
        (&dashboards(), ["check", "rules", "alerts.yml"]),
        (&dashboards(), ["test", "rules", "alerts_test.yml"]),
    ] {
        let output = promtool(folder, &arguments).unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success(), "{arguments:?}: {text}");
    }
    let tests = fs::read_to_string(dashboards().join("alerts_test.yml")).unwrap();
    let alerts = fs::read_to_string(dashboards().join("alerts.yml")).unwrap();
    for alert in alerts.split("- alert: ").skip(1) {
        let name = alert.lines().next().unwrap();
        let fires = format!("alertname: {name}\n        exp_alerts:\n");
        assert!(tests.contains(&fires), "no test makes {name} fire");
        assert!(
            alert.contains("summary:") && alert.contains("remedy:"),
            "{name}"
        );
    }
}
