use tilework::device::Calls;
use tilework::manager::Usage;

use super::*;

const MIB: u64 = 1 << 20;

fn mib(count: i64) -> i64 {
    count << 20
}

/// The manager's side of a report.
fn manager(held: u64, pending: u64) -> Totals {
    Totals {
        usage: Usage { held, peak_held: 2 * held, ..Usage::default() },
        pending,
        retries: 3,
        ooms: 2,
        ..Totals::default()
    }
}

#[test]
fn requests_are_told_apart_by_size() {
    let mut counters = Counters::default();
    counters.alloc(MIB - 1);
    counters.alloc(MIB);
    counters.alloc(5);
    counters.free(5);
    let report = counters.report(&Totals::default());
    assert_eq!(report.allocation.all, Stat { current: 2, peak: 3, allocated: 3, freed: 1 });
    assert_eq!(report.allocation.small, Stat { current: 1, peak: 2, allocated: 2, freed: 1 });
    assert_eq!(report.allocation.large, Stat { current: 1, peak: 1, allocated: 1, freed: 0 });
    assert_eq!(report.requested_bytes.all.current, 2 * MIB as i64 - 1);
    assert_eq!(report.allocated_bytes, report.requested_bytes);
    assert_eq!(report.max_split_size, -1);
}

#[test]
fn what_waits_for_a_stream_is_active_and_the_rest_of_what_is_held_is_not() {
    let mut counters = Counters::default();
    counters.alloc(4 * MIB);
    let report = counters.report(&manager(10 * MIB, MIB));
    assert_eq!(report.active_bytes.all.current, 5 * MIB as i64);
    assert_eq!(report.inactive_split_bytes.all.current, 5 * MIB as i64);
    assert_eq!(report.reserved_bytes.all.current, 10 * MIB as i64);
    assert_eq!(report.reserved_bytes.all.peak, 20 * MIB as i64);
    assert_eq!(report.reserved_bytes.small, Stat::default());
}

#[test]
fn resets_keep_what_is_current() {
    let mut counters = Counters::default();
    counters.alloc(9);
    counters.alloc(7);
    counters.free(7);
    counters.released(100);
    counters.reset_peaks();
    assert_eq!(counters.report(&manager(0, 0)).allocated_bytes.all.peak, 9);
    assert_eq!(counters.report(&manager(0, 0)).num_ooms, 2);
    counters.reset_accumulated(&manager(0, 0));
    let report = counters.report(&manager(0, 0));
    assert_eq!(report.allocated_bytes.all, Stat { current: 9, peak: 9, allocated: 0, freed: 0 });
    assert_eq!((report.num_ooms, report.num_alloc_retries, report.reserved_bytes.all.freed), (0, 0, 0));
}

#[test]
fn a_reset_begins_every_count_anew() {
    let calls = |create, release| Calls { create, release, ..Calls::default() };
    let mut counters = Counters::default();
    counters.alloc(4 * MIB);
    counters.released(7 * MIB);
    let then = Totals { device_calls: calls(5, 2), ..manager(10 * MIB, MIB) };
    let before = counters.report(&then);
    assert_eq!((before.num_device_alloc, before.num_device_free), (5, 2));
    assert_eq!((before.reserved_bytes.all.allocated, before.reserved_bytes.all.freed), (mib(17), mib(7)));
    counters.reset_accumulated(&then);
    let report = counters.report(&then);
    assert_eq!((report.num_device_alloc, report.num_device_free), (0, 0));
    let of = |stat: Stat| (stat.current, stat.allocated, stat.freed);
    assert_eq!(of(report.reserved_bytes.all), (mib(10), 0, 0));
    assert_eq!(of(report.inactive_split_bytes.all), (mib(5), 0, 0));

    // What aged went without a word; what the program gave back had come first.
    let report = counters.report(&Totals { device_calls: calls(6, 4), ..manager(8 * MIB, MIB) });
    assert_eq!((report.num_device_alloc, report.num_device_free), (1, 2));
    assert_eq!(of(report.reserved_bytes.all), (mib(8), 0, mib(2)));
    assert_eq!(of(report.inactive_split_bytes.all), (mib(3), 0, mib(2)));
    counters.released(3 * MIB);
    let report = counters.report(&manager(12 * MIB, MIB));
    assert_eq!(of(report.reserved_bytes.all), (mib(12), mib(5), mib(3)));
}
