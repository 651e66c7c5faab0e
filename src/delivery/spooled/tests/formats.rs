//! What an object is made by, across restarts with other configurations.

use std::io::Read as _;

use super::*;

/// Keys of a blob store with a compression.
fn compressed(compression: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![("url", "file:///nowhere"), ("compression", compression)]
}

/// Long events that do not compress well, numbered from `from`.
fn noise(from: u32, events: u32) -> Vec<String> {
    let noise = |n: u32| {
        let bytes = (0..8).map(|part| blake3::hash(&[n.to_le_bytes(), [part; 4]].concat()));
        bytes.map(|hash| hash.to_hex().to_string()).collect()
    };
    (from..from + events).map(noise).collect()
}

async fn flush_all(bench: &Bench, events: &[String]) {
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    assert_eq!(bench.flush(&events).await, Verdict::Ok);
}

#[tokio::test]
async fn an_object_that_had_begun_is_rebuilt_to_the_same_bytes_under_any_compression_of_today() {
    let all = ["none", "gzip", "zstd"];
    for (before, today) in all
        .iter()
        .flat_map(|one| all.iter().map(move |two| (one, two)))
    {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(OBJECT, 0);
        let bench = start(dir.path(), &store, &compressed(before));
        // Runs of lines that end blocks, with and without copies, and such that do not.
        for (from, events) in [(0, 10), (100, 1_500), (2_000, 7), (3_000, 900), (4_000, 1)] {
            flush_all(&bench, &noise(from, events)).await;
        }
        bench.pipeline.drain();
        store.reached(1).await;
        let image = bench.crash_image();
        bench.feed.abort();

        let after = Store::new(OBJECT, MANY);
        start(image.path(), &after, &compressed(today)).stop().await;
        let (first, again) = (store.batches(), after.batches());
        assert_eq!((first.len(), again.len()), (1, 1), "{before} to {today}");
        assert_eq!(first[0].target, again[0].target);
        assert!(first[0].records[0].len() > 500_000);
        assert!(first[0].records == again[0].records, "{before} to {today}");
    }
}

#[tokio::test]
async fn an_object_of_a_version_without_recipes_is_compressed_as_its_name_says() {
    let dir = tempfile::tempdir().unwrap();
    let bench = start(dir.path(), &Store::new(OBJECT, 0), &compressed("gzip"));
    bench.flush(&["a", "b"]).await;
    let (chunk, _) = bench.spool.peek(None).unwrap();
    let begun = Note::Begun {
        batch: 0,
        name: "t/20261130T024527Z-5eae.ndjson.gz".into(),
        token: "5eae".into(),
        lines: 2,
        contents: vec![Content {
            chunk,
            events: Events::All,
        }],
        recipe: None,
    };
    bench.spool.note(begun, Durability::Synced).await.unwrap();
    let image = bench.crash_image();
    bench.feed.abort();

    let after = Store::new(OBJECT, MANY);
    start(image.path(), &after, &compressed("zstd"))
        .stop()
        .await;
    let batches = after.batches();
    assert_eq!(batches.len(), 1);
    assert_eq!(&*batches[0].target, "t/20261130T024527Z-5eae.ndjson.gz");
    let body = batches[0].records[0].to_bytes();
    let mut text = String::new();
    let mut reader = flate2::read::MultiGzDecoder::new(&body[..]);
    reader.read_to_string(&mut text).expect("gzip");
    assert_eq!(text, lines(&["a", "b"]).join("\n") + "\n");
}

#[tokio::test]
async fn an_object_that_only_another_version_can_make_waits_and_holds_back_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let bench = start(dir.path(), &Store::new(OBJECT, 0), BLOB);
    bench.flush(&["a", "b", "c"]).await;
    bench.flush(&["d"]).await;
    let (first, _) = bench.spool.peek(None).unwrap();
    let (second, _) = bench.spool.peek(Some(first)).unwrap();
    let runs = Events::Runs(vec![0..1, 2..3]);
    let contents = vec![
        Content {
            chunk: first,
            events: runs,
        },
        Content {
            chunk: second,
            events: Events::All,
        },
    ];
    let begun = Note::Begun {
        batch: 0,
        name: "t/1.avro".into(),
        token: "5eae".into(),
        lines: 3,
        contents,
        recipe: Some("avro 1".into()),
    };
    bench.spool.note(begun, Durability::Synced).await.unwrap();
    let image = bench.crash_image();
    bench.feed.abort();

    // Twice: it waits through any number of starts.
    let mut expected = lines(&["b", "e"]);
    for _ in 0..2 {
        let after = Store::new(OBJECT, MANY);
        let bench = start(image.path(), &after, BLOB);
        let log = bench.lines.clone();
        if expected.len() == 2 {
            bench.flush(&["e"]).await;
        }
        let spool = Arc::clone(&bench.spool);
        bench.stop().await;
        assert_eq!(after.lines(), std::mem::take(&mut expected));
        assert_eq!(spool.usage().unfinished, 2);
        let log = log.0.lock().unwrap();
        let names =
            |line: &&(Level, String)| line.1.contains("t/1.avro") && line.1.contains("'avro 1'");
        assert_eq!(log.iter().filter(names).count(), 1, "{log:?}");
    }
}

/// Keys of tables.
const TABLE: &[(&str, &str)] = &[
    ("url", "file:///nowhere"),
    ("format", "parquet"),
    ("parquet_columns", "k string"),
    ("path", "all"),
];

/// Returns the values of a column of all files that reached a store.
#[cfg(feature = "parquet")]
fn values(store: &Store) -> Vec<String> {
    let files = store.batches().into_iter().flat_map(|batch| {
        assert!(batch.target.ends_with(".parquet"), "{}", batch.target);
        batch.records
    });
    let rows = files.flat_map(|file| crate::format::parquet::tests::read(file.to_bytes()));
    let value = |row: crate::format::parquet::tests::Row| match &row["k"] {
        parquet::record::Field::Str(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    let mut values: Vec<String> = rows.map(value).collect();
    values.sort();
    values
}

#[cfg(feature = "parquet")]
#[tokio::test]
async fn a_table_that_had_begun_is_rebuilt_to_the_same_bytes_under_any_format_of_today() {
    let lines = compressed("gzip");
    let others = [
        ("url", "file:///nowhere"),
        ("format", "parquet"),
        ("parquet_columns", "k int, other string = k2"),
        ("compression", "snappy"),
        ("path", "{record.k}"),
    ];
    for (before, today) in [
        (TABLE, TABLE),
        (TABLE, &lines[..]),
        (TABLE, &others[..]),
        (&lines[..], TABLE),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(OBJECT, 0);
        let bench = start(dir.path(), &store, before);
        for (from, events) in [(0, 10), (100, 1_500), (2_000, 7), (3_000, 900), (4_000, 1)] {
            flush_all(&bench, &noise(from, events)).await;
        }
        bench.pipeline.drain();
        store.reached(1).await;
        let image = bench.crash_image();
        bench.feed.abort();

        let after = Store::new(OBJECT, MANY);
        start(image.path(), &after, today).stop().await;
        let (first, again) = (store.batches(), after.batches());
        assert_eq!((first.len(), again.len()), (1, 1));
        assert_eq!(first[0].target, again[0].target);
        assert!(first[0].records[0].len() > 500_000);
        assert!(first[0].records == again[0].records, "{}", first[0].target);
    }
}

#[cfg(feature = "parquet")]
#[tokio::test]
async fn a_thousand_folders_of_tables_get_one_file_each_however_little_memory_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let mut keys = TABLE.to_vec();
    keys.retain(|(key, _)| *key != "path");
    keys.extend([
        ("path", "folder={record.k}"),
        ("memory_limit", "16M"),
        ("spool_limit", "64M"),
        ("blob_max_age", "1d"),
    ]);
    let bench = start(dir.path(), &store, &keys);
    let folders: Vec<String> = (0..1_000).map(|n| format!("folder-{n:04}")).collect();
    for _ in 0..5 {
        flush_all(&bench, &folders).await;
    }
    let held = bench.pipeline.metrics().spooled.get().unwrap_or_default();
    assert!(held < 8_000_000.0, "{held}");
    let spool = Arc::clone(&bench.spool);
    bench.stop().await;
    let mut expected: Vec<String> = folders
        .iter()
        .flat_map(|folder| vec![folder.clone(); 5])
        .collect();
    expected.sort();
    assert_eq!(values(&store), expected);
    assert_eq!(store.batches().len(), 1_000);
    assert_eq!(spool.usage().unfinished, 0);
}

#[cfg(feature = "parquet")]
#[tokio::test]
async fn values_that_do_not_fit_are_counted_once_and_the_log_names_the_column() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(OBJECT, MANY);
    let mut keys = TABLE.to_vec();
    keys[2].1 = "k int";
    let bench = start(dir.path(), &store, &keys);
    flush_all(&bench, &["1".into(), "a".into(), "b".into()]).await;
    let (metrics, log) = (Arc::clone(bench.pipeline.metrics()), bench.lines.clone());
    bench.stop().await;
    assert_eq!(metrics.columns.total(), 2);
    let log = log.0.lock().unwrap();
    assert!(
        log.iter().any(|(_, line)| line.contains("rest: k (2)")),
        "{log:?}"
    );
}
