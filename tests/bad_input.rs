//! Invalid input from the host: nothing crashes, and nothing else is lost.

use std::time::SystemTime;

use base64_simd::STANDARD;
use ferry::ids::Verdict;
use ferry_harness::ledger::verify_objects;
use serde_json::json;
use tempfile::TempDir;

use crate::support::plugin::{Plugin, chunk, push_event};

/// An output to a folder without a spool, so that a flush answers only after delivery.
fn plugin() -> (Plugin, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}", dir.path().display());
    (Plugin::start(&[("url", &url), ("spool", "off")]), dir)
}

/// The number of lines in a folder's objects.
fn arrived(dir: &TempDir) -> u64 {
    let report = verify_objects(dir.path(), "seq").unwrap().report(None);
    assert_eq!(report.totals.invalid_lines, 0, "{report}");
    report.totals.lines
}

/// The bytes of a dead letter.
fn bytes(letter: &serde_json::Value) -> Vec<u8> {
    STANDARD
        .decode_to_vec(letter["record_base64"].as_str().unwrap())
        .unwrap()
}

#[test]
fn a_broken_event_goes_to_the_dead_letters_and_its_neighbours_arrive() {
    let mut deep = vec![
        0x92, 0x92, 0xd7, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, 0x81, 0xa1, b'd',
    ];
    deep.extend([0x91; 10_000]);
    deep.push(0xc0);
    // The last string claims to be 4 GiB long.
    let lying = b"\x92\x92\xd7\0\0\0\0\x01\0\0\0\0\x80\x81\xa1s\xdb\xff\xff\xff\xffshort".to_vec();
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("10,000 levels of nesting", deep, "too_deep"),
        ("a length that lies", lying, "malformed"),
        ("a reserved byte", vec![0xc1; 5], "malformed"),
        (
            "a body that is no map",
            b"\x92\xce\0\0\0\x01\xa4oops".to_vec(),
            "malformed",
        ),
    ];
    for (what, broken, reason) in cases {
        let (plugin, dir) = plugin();
        let data = [chunk(0..10), broken.clone(), chunk(11..20)].concat();
        assert_eq!(plugin.flush("app", &data), Verdict::Ok, "{what}");
        assert_eq!(arrived(&dir), 19, "{what}: {}", plugin.log());
        let letters = plugin.letters();
        assert_eq!(letters.len(), 1, "{what}: {letters:?}");
        assert_eq!(letters[0]["reason"], reason, "{what}");
        assert_eq!(
            bytes(&letters[0]),
            broken,
            "{what}: the bytes are kept unchanged"
        );
    }
}

#[test]
fn a_truncated_chunk_delivers_its_whole_events_and_keeps_the_rest() {
    let (plugin, dir) = plugin();
    let whole = chunk(0..10);
    let cut = [whole.clone(), chunk(10..11)].concat();
    let cut = &cut[..cut.len() - 7];
    assert_eq!(plugin.flush("app", cut), Verdict::Ok);
    assert_eq!(arrived(&dir), 10);
    assert_eq!(bytes(&plugin.letters()[0]), &cut[whole.len()..]);
}

#[test]
fn an_empty_chunk_is_acknowledged_at_once() {
    let (plugin, dir) = plugin();
    assert_eq!(plugin.flush("app", b""), Verdict::Ok);
    assert_eq!(arrived(&dir), 0);
    assert!(plugin.letters().is_empty());
}

#[test]
fn any_tag_is_a_name_of_its_own_folder_and_of_no_other() {
    let (plugin, dir) = plugin();
    let outside = dir.path().parent().unwrap().join("escaped");
    let tags: [&[u8]; 8] = [
        b"../escaped",
        b"/etc/passwd",
        b"a/b//c",
        b"line\nbreak\r",
        b"\xff\xfe not utf-8",
        "주문.결제".as_bytes(),
        b"",
        b"..",
    ];
    for (n, tag) in tags.iter().enumerate() {
        let mut data = Vec::new();
        push_event(&mut data, SystemTime::UNIX_EPOCH, &json!({"seq": n}));
        assert_eq!(
            plugin.flush_bytes(tag, &data),
            Verdict::Ok,
            "{tag:?}: {}",
            plugin.log()
        );
    }
    let report = verify_objects(dir.path(), "seq")
        .unwrap()
        .report(Some(tags.len() as u64));
    assert_eq!((report.missing, report.duplicates), (0, 0), "{report}");
    assert!(!outside.exists());
    assert!(plugin.letters().is_empty());
}
