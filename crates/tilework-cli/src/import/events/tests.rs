use tilework::manager::Stream;

use super::*;

fn entry(action: Action, address: u64, bytes: u64, time_us: u64) -> Entry {
    Entry { action, address, bytes, stream: Stream(0), time_us }
}

/// The events as lines of a trace, the streams left out.
fn lines(live: &[(u64, u64)], trace: Vec<Entry>) -> Vec<String> {
    let live = live.iter().map(|&(address, bytes)| Block { device: 0, address, bytes, stream: Stream(0) });
    let snapshot = Snapshot { live: live.collect(), traces: vec![trace] };
    of(&snapshot, 0).iter().map(|e| format!("{},{},{},{}", e.time_us, e.op, e.id, e.bytes)).collect()
}

use Action::{Alloc, FreeCompleted, FreeRequested};

#[test]
fn a_block_ends_when_its_free_is_completed() {
    let trace = vec![
        entry(Alloc, 16, 5, 100),
        entry(FreeRequested, 16, 5, 101),
        entry(Alloc, 32, 7, 102),
        entry(FreeCompleted, 16, 5, 103),
    ];
    assert_eq!(lines(&[(32, 7)], trace), ["0,alloc,0,5", "2,alloc,1,7", "3,free,0,5"]);
}

#[test]
fn without_completions_the_request_to_free_ends_it() {
    let trace = vec![entry(Alloc, 16, 5, 100), entry(FreeRequested, 16, 5, 101)];
    assert_eq!(lines(&[], trace), ["0,alloc,0,5", "1,free,0,5"]);
}

#[test]
fn what_was_live_before_is_requested_first() {
    // At 64 a block was there that the recording saw freed, at 16 one that nobody touched; the one at 32
    // was made in the recording, where another had been.
    let trace =
        vec![entry(FreeCompleted, 64, 9, 100), entry(FreeCompleted, 32, 3, 101), entry(Alloc, 32, 4, 102)];
    assert_eq!(
        lines(&[(32, 4), (16, 2)], trace),
        ["0,alloc,0,2", "0,alloc,1,3", "0,alloc,2,9", "0,free,2,9", "1,free,1,3", "2,alloc,3,4"]
    );
}

#[test]
fn lost_frees_empty_requests_and_clocks_set_back_do_no_harm() {
    let trace = vec![
        entry(Alloc, 16, 5, 200),
        entry(Alloc, 16, 6, 100),
        entry(Alloc, 32, 0, 150),
        entry(FreeCompleted, 32, 0, 160),
    ];
    assert_eq!(lines(&[(16, 6)], trace), ["100,alloc,0,5", "100,free,0,5", "100,alloc,1,6"]);
}
