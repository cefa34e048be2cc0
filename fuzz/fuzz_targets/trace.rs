//! Any bytes as a trace: an error or a trace, and what is read is the same once written and read again.
#![no_main]

use std::io::{Cursor, Read};

use libfuzzer_sys::fuzz_target;
use tilework::trace::{Event, HEADER, Reader, Trace, TraceError, Writer};

fn events(source: impl Read + Send + 'static) -> Result<Vec<Event>, TraceError> {
    Reader::new(source)?.collect()
}

fuzz_target!(|input: &[u8]| {
    // The header is no news: without it in front, finding it would be most of the work.
    let bytes = match input.split_first() {
        Some((1, body)) => [HEADER.as_bytes(), b"\n", body].concat(),
        _ => input.to_vec(),
    };
    if let Ok(reader) = Reader::new(Cursor::new(bytes.clone()))
        && let Ok(trace) = Trace::read("fuzzed", reader)
    {
        assert_eq!(trace.allocations() + trace.frees(), trace.steps().len() as u64);
        assert_eq!(trace.live_after(trace.steps().len()).len() as u64, trace.allocations() - trace.frees());
    }
    let Ok(events) = events(Cursor::new(bytes)) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace.csv.gz");
    let mut writer = Writer::create(&file).expect("a file");
    events.iter().for_each(|event| writer.write(event).expect("room on disk"));
    writer.finish().expect("room on disk");
    let again: Result<Vec<_>, _> = Reader::open(&file).expect("a trace").collect();
    assert_eq!(again.expect("what was just written"), events);
});
