//! `${VARIABLE}`, with all the host's peculiarities.

use std::collections::HashMap;
use std::fs;

/// The values of variables: from `@SET`, or else from the environment.
#[derive(Debug)]
pub struct Variables {
    set: HashMap<String, String>,
    /// A warning for each use of an unset variable.
    pub warnings: Vec<String>,
}

impl Variables {
    pub(crate) fn with(sets: &[(String, String)]) -> Self {
        let mut set: HashMap<_, _> = sets.iter().cloned().collect();
        // Shells set HOSTNAME but rarely export it, so the host provides it.
        if std::env::var_os("HOSTNAME").is_none()
            && let Ok(name) = fs::read_to_string("/proc/sys/kernel/hostname")
        {
            set.entry("HOSTNAME".to_owned())
                .or_insert_with(|| name.trim_end().to_owned());
        }
        Self {
            set,
            warnings: Vec::new(),
        }
    }

    fn lookup(&self, name: &str) -> Option<String> {
        let set = self.set.get(name).cloned();
        set.or_else(|| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// Resolves `${name}` and `${name:-default}`. An unset variable is empty. As in the host, a `}` before the next
    /// `${` ends the resolution.
    pub fn resolve(&mut self, value: &str) -> String {
        let mut out = String::new();
        let mut resolved = false;
        let mut tail = None;
        let mut at = 0;
        while let Some(start) = value[at..].find("${").map(|found| at + found) {
            tail = value[at..].find('}').map(|found| at + found);
            let Some(end) = tail.filter(|&end| end > start + 2) else {
                break;
            };
            resolved = true;
            out.push_str(&value[at..start]);
            let inner = &value[start + 2..end];
            let (name, default) = match inner.split_once(':') {
                Some((name, rest)) if rest.starts_with('-') => (name, Some(&rest[1..])),
                _ => (inner, None),
            };
            match (self.lookup(name), default) {
                (Some(found), _) => out.push_str(&found),
                (None, Some(default)) => out.push_str(default),
                (None, None) => self
                    .warnings
                    .push(format!("[env] variable ${{{name}}} is used but not set")),
            }
            at = end + 1;
        }
        if !resolved {
            return value.to_owned();
        }
        if let Some(end) = tail {
            out.push_str(&value[end + 1..]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_resolved_as_in_the_host() {
        let sets = [("a", "1"), ("b", "two")];
        let sets = sets.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut variables = Variables::with(&sets);
        let cases = [
            ("plain", "plain"),
            ("${a}", "1"),
            ("x${a}y${b}z", "x1ytwoz"),
            ("${UNSET_B}", ""),
            ("x${UNSET_B}y", "xy"),
            ("${UNSET_B:-word}", "word"),
            ("${a:-word}", "1"),
            ("${a:word}", ""),
            ("$a {a} ${", "$a {a} ${"),
            ("${}", "${}"),
            (r#"{"k": "${a}"}"#, r#"{"k": "1"}"#),
            (r#"{"k": {}, "v": "${a}"}"#, r#"{"k": {}, "v": "${a}"}"#),
            ("${a}} ${b}", "1 ${b}"),
            ("${a} ${b", "1"),
        ];
        for (value, resolved) in cases {
            assert_eq!(variables.resolve(value), resolved, "{value}");
        }
    }
}
