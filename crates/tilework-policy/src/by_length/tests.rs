use proptest::prelude::*;

use super::*;

fn shape() -> impl Strategy<Value = (u32, u32)> {
    let len = prop_oneof![LONG_RUN..LONG_RUN + 4, LONG_RUN..LONG_RUN * 64, LONG_RUN..=u32::MAX];
    (0u32..1 << 20, len)
}

proptest! {
    #[test]
    fn agrees_with_an_ordered_set(
        shapes in prop::collection::vec(shape(), 30),
        changes in prop::collection::vec((0u32..30, prop::option::of(shape())), 1..200),
        (start, len) in shape(),
    ) {
        let mut runs: Vec<(u32, u32)> = shapes;
        let mut long = ByLength::new();
        let mut plain = BTreeSet::new();
        for (nth, to) in changes {
            let (from, before) = runs[nth as usize];
            let there = plain.remove(&(before, from));
            match to {
                Some((start, len)) if there => {
                    // Two runs never start at one position.
                    let start = start * 30 + nth;
                    long.reshape((from, before), (start, len));
                    plain.insert((len, start));
                    runs[nth as usize] = (start, len);
                }
                None if there => long.remove(from, before),
                _ => {
                    let start = from / 30 * 30 + nth;
                    long.insert(start, before);
                    plain.insert((before, start));
                    runs[nth as usize] = (start, before);
                }
            }
            let (same, last) = runs[nth as usize];
            for (len, start) in [(len, start), (last, same), (last, same + 1), (LONG_RUN, 0)] {
                prop_assert_eq!(long.at_least(len, start), plain.range((len, start)..).next().copied());
                prop_assert_eq!(long.below(len, start), plain.range(..(len, start)).next_back().copied());
            }
        }
    }

    #[test]
    fn classes_keep_the_order_of_lengths(a in LONG_RUN..=u32::MAX, b in LONG_RUN..=u32::MAX) {
        prop_assert!(class(a) < CLASSES);
        prop_assert!(a > b || class(a) <= class(b));
    }
}
