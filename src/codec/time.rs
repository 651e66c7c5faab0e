//! Formats of event times.

use std::fmt::{Display, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::format::{Fixed, Item, Numeric, StrftimeItems};
use chrono::{DateTime, FixedOffset, Offset as _, Utc};
use jiff::Timestamp;
use jiff::tz::{TimeZone, TimeZoneDatabase};

use crate::ids::Time;

/// Returns a calendar time. Times outside chrono's range are clamped to it.
pub fn utc(time: Time) -> DateTime<Utc> {
    DateTime::from_timestamp(time.seconds, time.nanos).unwrap_or(if time.seconds < 0 {
        DateTime::<Utc>::MIN_UTC
    } else {
        DateTime::<Utc>::MAX_UTC
    })
}

/// Returns the system's time.
pub fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

/// The format of the time in a record.
#[derive(Clone, Debug)]
pub enum TimeFormat {
    /// `2025-07-02T20:44:31.123Z`, which Athena, Spark and the OpenX SerDe read.
    Iso8601,
    /// Seconds since the Unix epoch, as a number.
    Epoch,
    /// Milliseconds since the Unix epoch, as a number.
    EpochMs,
    /// The user's own format.
    Strftime(Strftime),
}

/// A strftime format in a time zone, with `%3N`, `%6N`, `%9N`, `%N` and `%L` for fractions of a second.
#[derive(Clone, Debug)]
pub struct Strftime {
    items: Vec<Item<'static>>,
    zone: Zone,
}

/// A time zone. What it says of an instant depends on nothing but the zone's name and the data that the library
/// contains: neither on the machine nor on its clock. The default is UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone(Option<TimeZone>);

impl Zone {
    /// Returns the zone of an IANA name such as `Asia/Seoul`, ignoring case; `None` if there is none.
    pub fn named(name: &str) -> Option<Zone> {
        let zone = TimeZoneDatabase::bundled().get(name).ok()?;
        Some(Zone(Some(zone).filter(|zone| *zone != TimeZone::UTC)))
    }

    /// Returns the zone's name; `None` for UTC.
    pub fn name(&self) -> Option<&str> {
        self.0.as_ref()?.iana_name()
    }
}

/// An invalid time format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeFormatError {
    /// The first unknown specifier.
    #[error("'{0}' is not a time specifier")]
    Specifier(String),
    /// The whole format.
    #[error("'{0}' is not a time format")]
    Format(String),
}

impl Strftime {
    /// Parses a format; the error names the first unknown specifier.
    pub fn parse(format: &str) -> Result<Strftime, TimeFormatError> {
        let native = fractions(format);
        let items = StrftimeItems::new(&native)
            .parse_to_owned()
            .map_err(|_| unknown(format))?;
        Ok(Strftime {
            items,
            zone: Zone::default(),
        })
    }

    /// Returns the same format in another zone.
    pub fn in_zone(self, zone: Zone) -> Strftime {
        Strftime { zone, ..self }
    }

    /// Appends `time` to `out`.
    pub fn write(&self, time: Time, out: &mut String) {
        let at = utc(time);
        let Some(zone) = &self.zone.0 else {
            let _ = write!(out, "{}", at.format_with_items(self.items.iter()));
            return;
        };
        let seconds = at.timestamp();
        let instant = Timestamp::from_second(seconds).unwrap_or(match seconds < 0 {
            true => Timestamp::MIN,
            false => Timestamp::MAX,
        });
        let info = zone.to_offset_info(instant);
        let offset = FixedOffset::east_opt(info.offset().seconds()).unwrap_or(Utc.fix());
        let items = self.items.iter().map(|item| match item {
            Item::Fixed(Fixed::TimezoneName) => Item::Literal(info.abbreviation()),
            item => item.clone(),
        });
        // At the calendar's ends, the zone's time may be beyond it.
        let _ = match at.naive_utc().checked_add_offset(offset) {
            Some(_) => write!(
                out,
                "{}",
                at.with_timezone(&offset).format_with_items(items)
            ),
            None => write!(out, "{}", at.format_with_items(self.items.iter())),
        };
    }

    /// Whether the format has no fractions of a second.
    pub fn whole_seconds(&self) -> bool {
        !self.items.iter().any(|item| {
            matches!(
                item,
                Item::Numeric(Numeric::Nanosecond, _)
                    | Item::Fixed(
                        Fixed::Nanosecond
                            | Fixed::Nanosecond3
                            | Fixed::Nanosecond6
                            | Fixed::Nanosecond9
                            | Fixed::Internal(_)
                            | Fixed::RFC3339
                    )
            )
        })
    }
}

/// Translates the specifiers for fractions of Fluent Bit and the AWS plugins into chrono's.
fn fractions(format: &str) -> String {
    let mut native = String::with_capacity(format.len());
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        native.push_str(&rest[..at]);
        let (name, len) = match &rest.as_bytes()[at + 1..] {
            [b'3', b'N', ..] => ("%3f", 3),
            [b'6', b'N', ..] => ("%6f", 3),
            [b'9', b'N', ..] => ("%9f", 3),
            [b'N', ..] => ("%9f", 2),
            [b'L', ..] => ("%3f", 2),
            [b'%', ..] => ("%%", 2),
            _ => ("%", 1),
        };
        native.push_str(name);
        rest = &rest[at + len..];
    }
    native + rest
}

fn unknown(format: &str) -> TimeFormatError {
    let native = fractions(format);
    let mut last = 0;
    for (at, _) in native.match_indices('%') {
        if at < last {
            continue;
        }
        let specifier: String = native[at..].chars().take(2).collect();
        last = at + specifier.len();
        if StrftimeItems::new(&specifier).any(|item| item == Item::Error) {
            return TimeFormatError::Specifier(specifier);
        }
    }
    TimeFormatError::Format(format.to_owned())
}

/// Writes a time as [`TimeFormat::Iso8601`]. Years outside 0 to 9999 have a sign, as ISO 8601 requires.
pub fn write_iso8601(time: Time, out: &mut Vec<u8>) {
    let _ = std::io::Write::write_fmt(out, format_args!("{}", iso8601(time)));
}

/// The same to be written anywhere.
pub fn iso8601(time: Time) -> impl Display {
    utc(time).format("%Y-%m-%dT%H:%M:%S%.3fZ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Time = Time {
        seconds: 1_751_489_071,
        nanos: 123_456_789,
    };

    #[test]
    fn fractions_have_the_names_that_fluent_bit_uses() {
        let cases = [
            ("%Y-%m-%dT%H:%M:%S", "2025-07-02T20:44:31"),
            ("%S.%3N", "31.123"),
            ("%S.%6N", "31.123456"),
            ("%S.%9N", "31.123456789"),
            ("%S.%N", "31.123456789"),
            ("%S.%L", "31.123"),
            ("%%3N %z", "%3N +0000"),
            ("%s", "1751489071"),
            ("%F %T", "2025-07-02 20:44:31"),
        ];
        for (format, expected) in cases {
            let mut out = String::new();
            Strftime::parse(format).unwrap().write(AT, &mut out);
            assert_eq!(out, expected, "{format}");
        }
    }

    #[test]
    fn a_zone_has_its_own_offset_and_name_at_each_instant() {
        // 2025-03-30T00:59:59Z and 01:00:00Z: summer time begins in Berlin. 2025-10-26T00:59:59Z: it ends a second later.
        let cases = [
            ("Asia/Seoul", 1_735_761_600, "2025-01-02 05:00:00 +0900 KST"),
            (
                "Europe/Berlin",
                1_743_296_399,
                "2025-03-30 01:59:59 +0100 CET",
            ),
            (
                "Europe/Berlin",
                1_743_296_400,
                "2025-03-30 03:00:00 +0200 CEST",
            ),
            (
                "Europe/Berlin",
                1_761_440_399,
                "2025-10-26 02:59:59 +0200 CEST",
            ),
            (
                "Europe/Berlin",
                1_761_440_400,
                "2025-10-26 02:00:00 +0100 CET",
            ),
            (
                "america/new_york",
                1_751_489_071,
                "2025-07-02 16:44:31 -0400 EDT",
            ),
            (
                "Asia/Kathmandu",
                1_751_489_071,
                "2025-07-03 02:29:31 +0545 +0545",
            ),
            (
                "Pacific/Apia",
                1_325_239_200,
                "2011-12-31 00:00:00 +1400 +14",
            ),
            ("UTC", 1_751_489_071, "2025-07-02 20:44:31 +0000 UTC"),
            // The rule after the last change in the data.
            (
                "Europe/Berlin",
                4_118_083_200,
                "2100-07-01 02:00:00 +0200 CEST",
            ),
        ];
        for (name, seconds, expected) in cases {
            let zone = Zone::named(name).expect(name);
            let mut out = String::new();
            let format = Strftime::parse("%F %T %z %Z").unwrap().in_zone(zone);
            format.write(Time { seconds, nanos: 0 }, &mut out);
            assert_eq!(out, expected, "{name}");
        }
        for name in [
            "",
            "KST",
            "Asia/Seoul2",
            "+09:00",
            "/etc/localtime",
            "../UTC",
        ] {
            assert_eq!(Zone::named(name), None, "{name}");
        }
        for seconds in [i64::MIN, -62_135_596_801, 253_402_300_800, i64::MAX] {
            let zone = Zone::named("Asia/Seoul").unwrap();
            let mut out = String::new();
            let format = Strftime::parse("%F %Z").unwrap().in_zone(zone);
            format.write(Time { seconds, nanos: 0 }, &mut out);
            assert!(!out.is_empty());
        }
    }

    #[test]
    fn the_default_is_iso_8601_with_milliseconds_and_a_zone() {
        let mut out = Vec::new();
        write_iso8601(AT, &mut out);
        assert_eq!(out, b"2025-07-02T20:44:31.123Z");
    }

    #[test]
    fn times_outside_the_calendar_are_clamped() {
        for seconds in [i64::MIN, -1, 253_402_300_800, i64::MAX] {
            let mut out = Vec::new();
            write_iso8601(Time { seconds, nanos: 0 }, &mut out);
            assert!(out.ends_with(b"Z"), "{seconds}");
        }
    }

    #[test]
    fn formats_without_fractions_are_recognised() {
        for (format, whole) in [
            ("%H:%M:%S", true),
            ("%3N", false),
            ("%s", true),
            ("%L", false),
            ("%.3f", false),
        ] {
            assert_eq!(
                Strftime::parse(format).unwrap().whole_seconds(),
                whole,
                "{format}"
            );
        }
    }

    #[test]
    fn an_unknown_specifier_is_named() {
        assert_eq!(
            Strftime::parse("%Y/%Q").unwrap_err().to_string(),
            "'%Q' is not a time specifier"
        );
    }
}
