use std::fs;
use std::io::{Cursor, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::*;
use crate::manager::Stream;

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn parse(data: impl Into<Vec<u8>>) -> Result<Trace, TraceError> {
    Trace::read("t", Reader::new(Cursor::new(data.into()))?)
}

/// The error of a trace with these lines after the header.
fn error(lines: &str) -> String {
    let text = format!("{HEADER}\n{lines}");
    let plain = parse(text.as_str()).expect_err("a wrong trace").to_string();
    assert_eq!(plain, parse(gzip(&text)).unwrap_err().to_string(), "compressed, the same");
    plain
}

fn alloc(id: u64, bytes: u64) -> Event {
    Event { time_us: 0, op: Op::Alloc, id, bytes, stream: Stream(0) }
}

fn free(id: u64, bytes: u64) -> Event {
    Event { op: Op::Free, ..alloc(id, bytes) }
}

#[test]
fn a_trace_is_compacted_into_dense_slots() {
    let text =
        format!("{HEADER}\n0,alloc,70,5,0\n1,alloc,9,6,3\n2,free,70,5,0\n3,alloc,70,7,1\n4,free,9,6,3\n");
    for data in [text.clone().into_bytes(), gzip(&text), text.replace('\n', "\r\n").into_bytes()] {
        let trace = parse(data).unwrap();
        assert_eq!(
            trace.steps(),
            [
                Step::Alloc { slot: 0, bytes: 5, stream: Stream(0) },
                Step::Alloc { slot: 1, bytes: 6, stream: Stream(3) },
                Step::Free { slot: 0 },
                Step::Alloc { slot: 0, bytes: 7, stream: Stream(1) },
                Step::Free { slot: 1 },
            ]
        );
        assert_eq!((trace.slots(), trace.allocations(), trace.frees()), (2, 3, 2));
        assert_eq!(trace.peak_live_bytes(), 13);
        assert_eq!((trace.line(3), trace.id(3), trace.time_us(3)), (5, 70, 3));
        assert_eq!(trace.live_after(4), [1, 3]);
        assert_eq!(trace.live_after(5), [3]);
    }
}

#[test]
fn the_last_line_may_lack_its_end() {
    assert_eq!(parse(format!("{HEADER}\n0,alloc,1,5,0")).unwrap().allocations(), 1);
}

#[test]
fn a_header_alone_is_a_trace_without_events() {
    assert!(parse(format!("{HEADER}\n")).unwrap().is_empty());
}

#[test]
fn an_empty_file_is_refused() {
    for data in [Vec::new(), gzip("")] {
        let error = parse(data).unwrap_err();
        assert!(matches!(error.problem, Problem::Empty), "{error}");
        assert_eq!(error.line, Some(1));
    }
}

#[test]
fn a_missing_header_is_refused() {
    let error = parse("0,alloc,1,5,0\n").unwrap_err().to_string();
    assert_eq!(error, "line 1: expected the header `time_us,op,id,bytes,stream`, found \"0,alloc,1,5,0\"");
}

#[test]
fn a_file_that_is_no_trace_is_refused() {
    let error = parse(vec![b'x'; 1 << 20]).unwrap_err();
    assert!(matches!(error.problem, Problem::LineTooLong { .. }), "{error}");
    let error = parse([0xff, 0xfe, 0, 1]).unwrap_err();
    assert!(matches!(error.problem, Problem::Header { .. }), "{error}");
}

#[test]
fn a_wrong_number_of_fields_is_refused() {
    assert_eq!(
        error("0,alloc,1,5,0\n1,free,1,5\n"),
        "line 3: expected 5 fields (time_us,op,id,bytes,stream), found 4"
    );
    assert!(error("0,alloc,1,5,0,\n").ends_with("found 6"));
    assert!(error("\n").ends_with("found 1"));
}

#[test]
fn a_bad_number_is_refused() {
    assert_eq!(error("0,alloc,1,-5,0\n"), "line 2: bytes must be a whole number below 2^64, found \"-5\"");
    for (line, field) in [
        ("1.5,alloc,1,5,0", "time_us"),
        ("0,alloc,0x1,5,0", "id"),
        ("0,alloc,1,,0", "bytes"),
        ("0,alloc,1,5,+0", "stream"),
        ("0,alloc,18446744073709551616,5,0", "id"),
    ] {
        assert!(error(line).contains(&format!("{field} must be a whole number")), "{line}");
    }
}

#[test]
fn an_unknown_op_is_refused() {
    assert_eq!(
        error("0,alloc,1,5,0\n0,realloc,1,5,0\n"),
        "line 3: op must be `alloc` or `free`, found \"realloc\""
    );
}

#[test]
fn an_id_allocated_while_live_is_refused() {
    assert_eq!(
        error("0,alloc,1,5,0\n0,alloc,2,5,0\n0,alloc,1,5,0\n"),
        "line 4: alloc of id 1, which is live since line 2"
    );
}

#[test]
fn a_free_of_an_unknown_id_is_refused() {
    assert_eq!(error("0,free,1,5,0\n"), "line 2: free of id 1, which was never allocated");
}

#[test]
fn a_double_free_names_the_first() {
    assert_eq!(
        error("0,alloc,1,5,0\n0,free,1,5,0\n0,alloc,2,5,0\n0,free,1,5,0\n"),
        "line 5: free of id 1, which was freed already at line 3"
    );
}

#[test]
fn a_zero_size_request_is_refused() {
    assert_eq!(error("0,alloc,1,0,0\n"), "line 2: alloc of id 1 asks for zero bytes");
}

#[test]
fn a_huge_request_is_refused() {
    for bytes in ["9223372036854775808", "18446744073709551615", "99999999999999999999999"] {
        assert_eq!(
            error(&format!("0,alloc,1,{bytes},0\n")),
            format!("line 2: {bytes} bytes are more than one request can have (9223372036854775807)")
        );
    }
    let half = 1u64 << 62;
    assert_eq!(
        error(&format!("0,alloc,1,{half},0\n0,alloc,2,{half},0\n")),
        "line 3: the bytes live at once exceed 9223372036854775807"
    );
}

#[test]
fn a_free_that_disagrees_with_its_alloc_is_refused() {
    assert_eq!(
        error("0,alloc,1,5,0\n0,free,1,6,0\n"),
        "line 3: free of id 1 says 6 bytes, its alloc at line 2 said 5"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Trace::load("no/such/trace.csv.gz").unwrap_err();
    assert!(matches!(error.problem, Problem::Open(_)));
    assert!(error.to_string().starts_with("no/such/trace.csv.gz: cannot open it: "), "{error}");
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_is_cut() {
    let lines: String = (0..400).map(|i| format!("{i},alloc,{i},{},0\n", i * 7919 % 1013 + 1)).collect();
    let whole = gzip(&format!("{HEADER}\n{lines}"));
    assert!(parse(whole.as_slice()).is_ok());
    for length in 0..whole.len() {
        let error = parse(&whole[..length]).expect_err("cut short");
        assert!(error.line.is_some());
        match length {
            0 => assert!(matches!(error.problem, Problem::Empty)),
            _ => assert!(matches!(error.problem, Problem::Truncated), "{length}: {error}"),
        }
    }
}

#[test]
fn a_damaged_file_is_an_error() {
    let whole = gzip(&format!("{HEADER}\n0,alloc,1,5,0\n"));
    for at in whole.len() - 8..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        assert!(matches!(parse(damaged).unwrap_err().problem, Problem::Damaged(_)), "byte {at}");
    }
    let mut trailing = whole;
    trailing.extend(b"more");
    assert!(parse(trailing).is_err());
}

#[test]
fn sizes_scale_up_to_whole_bytes() {
    let trace = Trace::from_events("t", [alloc(0, 1), alloc(1, 1000), free(0, 1), alloc(2, 3)]).unwrap();
    let sizes = |trace: &Trace| -> Vec<u64> {
        let size = |step: &Step| match *step {
            Step::Alloc { bytes, .. } => Some(bytes),
            Step::Free { .. } => None,
        };
        trace.steps().iter().filter_map(size).collect()
    };
    let tenth = trace.scaled(0.1).unwrap();
    assert_eq!(sizes(&tenth), [1, 100, 1]);
    assert_eq!(tenth.peak_live_bytes(), 101);
    assert_eq!(sizes(&trace.scaled(2.5).unwrap()), [3, 2500, 8]);
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e18] {
        let error = trace.scaled(factor).unwrap_err();
        assert!(matches!(error.problem, Problem::Scale { .. }), "{error}");
    }
}

#[test]
fn a_writer_leaves_nothing_under_the_final_name_until_it_finishes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv.gz");
    let files = || fs::read_dir(folder.path()).unwrap().count();

    let mut writer = Writer::create(&path).unwrap();
    writer.write(&alloc(0, 8)).unwrap();
    assert!(!path.exists());
    drop(writer);
    assert_eq!(files(), 0, "an abandoned trace is removed");

    fs::write(&path, "before").unwrap();
    let mut writer = Writer::create(&path).unwrap();
    writer.write(&alloc(0, 8)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"before");
    writer.finish().unwrap();
    assert_eq!(Trace::load(&path).unwrap().allocations(), 1);
    assert_eq!(files(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_trace_in_the_making_has_no_name_that_could_be_left() {
    use rustix::fs::{Mode, OFlags, open};

    let folder = tempfile::tempdir().unwrap();
    if let Err(error) = open(folder.path(), OFlags::TMPFILE | OFlags::WRONLY, Mode::RUSR) {
        println!("skipped: this file system has no files without a name: {error}");
        return;
    }
    let path = folder.path().join("t.csv.gz");
    let mut writer = Writer::create(&path).unwrap();
    writer.write(&alloc(0, 8)).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // What an earlier process may have left is in nobody's way.
    fs::write(folder.path().join("t.csv.gz.partial"), "left").unwrap();
    writer.finish().unwrap();
    assert_eq!(Trace::load(&path).unwrap().allocations(), 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_writer_replaces_what_a_link_points_to_and_writes_devices_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("t.csv.gz"), folder.path().join("link"));
    fs::write(&path, "before").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    Writer::create(&link).unwrap().finish().unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(Trace::load(&path).unwrap().is_empty());

    Writer::create("/dev/null").unwrap().finish().unwrap();
    assert!(Writer::create(folder.path()).is_err(), "a folder is no place for a trace");
}

/// Events that make sense together: from choices of what to do next.
fn sensible(choices: Vec<(bool, u64, u64, u64)>) -> Vec<Event> {
    let (mut live, mut events, mut time_us) = (Vec::<Event>::new(), Vec::new(), 0);
    for (id, (free, pick, bytes, stream)) in (0..).zip(choices) {
        time_us += pick % 100;
        let event = if free && !live.is_empty() {
            let block = live.swap_remove(pick as usize % live.len());
            Event { time_us, op: Op::Free, ..block }
        } else {
            let block = Event { time_us, op: Op::Alloc, id, bytes, stream: Stream(stream) };
            live.push(block);
            block
        };
        events.push(event);
    }
    events
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(
        choices in prop::collection::vec((any::<bool>(), any::<u64>(), 1u64..1 << 40, any::<u64>()), 0..200),
    ) {
        let events = sensible(choices);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv.gz");
        let mut writer = Writer::create(&path).unwrap();
        for event in &events {
            writer.write(event).unwrap();
        }
        writer.finish().unwrap();
        let read: Vec<Event> = Reader::open(&path).unwrap().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(&read, &events);
        let (loaded, built) = (Trace::load(&path).unwrap(), Trace::from_events("t", events).unwrap());
        prop_assert_eq!(loaded.steps(), built.steps());
    }

    #[test]
    fn no_bytes_make_the_reader_panic(data in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(data.as_slice());
        let _ = parse([HEADER.as_bytes(), b"\n", &data].concat());
        let _ = parse([&[0x1f, 0x8b], data.as_slice()].concat());
    }
}
