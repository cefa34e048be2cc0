use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// Free runs of these positions and lengths, in no index.
fn runs(shapes: &[(u32, u32)]) -> Vec<Extent> {
    shapes.iter().map(|&(start, len)| Extent::free(start, len)).collect()
}

fn shape() -> impl Strategy<Value = (u32, u32)> {
    let len = prop_oneof![LONG_RUN..LONG_RUN + 4, LONG_RUN..LONG_RUN * 64, LONG_RUN..=u32::MAX];
    (0u32..1 << 20, len)
}

/// How deep the tree is.
fn depth(extents: &[Extent], root: u32) -> u32 {
    if root == NIL {
        return 0;
    }
    let Extent { a, b, .. } = extents[root as usize];
    1 + depth(extents, a).max(depth(extents, b))
}

proptest! {
    #[test]
    fn agrees_with_an_ordered_set(
        shapes in prop::collection::vec(shape(), 30),
        changes in prop::collection::vec((0u32..30, prop::option::of(shape())), 1..200),
        (start, len) in shape(),
    ) {
        let mut extents = runs(&shapes);
        let mut long = ByLength::new();
        let mut plain = BTreeSet::new();
        let named = |extents: &[Extent], at: Option<u32>| at.map(|at| (key_of(extents, at), at));
        for (at, to) in changes {
            let entry = (key_of(&extents, at), at);
            let there = plain.remove(&entry);
            match to {
                // Two runs never start at one position: it names the run.
                Some((start, len)) if there => {
                    let start = start * 30 + at;
                    long.reshape(&mut extents, at, start, len);
                    plain.insert((key(len, start), at));
                }
                None if there => long.remove(&mut extents, at),
                _ => {
                    extents[at as usize].start = extents[at as usize].start / 30 * 30 + at;
                    long.insert(&mut extents, at);
                    plain.insert((key_of(&extents, at), at));
                }
            }
            let Extent { start: same, len: long_, .. } = extents[at as usize];
            for (len, start) in [(len, start), (long_, same), (long_, same + 1), (LONG_RUN, 0)] {
                let wanted = (key(len, start), 0);
                prop_assert_eq!(named(&extents, long.at_least(&extents, len, start)), plain.range(wanted..).next().copied());
                prop_assert_eq!(named(&extents, long.below(&extents, len, start)), plain.range(..wanted).next_back().copied());
            }
        }
    }

    #[test]
    fn classes_keep_the_order_of_lengths(a in LONG_RUN..=u32::MAX, b in LONG_RUN..=u32::MAX) {
        prop_assert!(class(a) < CLASSES);
        prop_assert!(a > b || class(a) <= class(b));
    }
}

#[test]
fn equal_lengths_in_address_order_do_not_make_a_list() {
    let shapes: Vec<_> = (0..100_000).map(|nth| (nth * 2 * LONG_RUN, LONG_RUN)).collect();
    let mut extents = runs(&shapes);
    let mut long = ByLength::new();
    for at in 0..extents.len() as u32 {
        long.insert(&mut extents, at);
    }
    let depth = depth(&extents, long.roots[class(LONG_RUN)]);
    assert!(depth < 60, "{depth} deep");
}
