use super::*;

#[test]
fn a_script_follows_its_blocks_through_the_live_list() {
    let mut script = Script::new();
    script.alloc('a', 1, 0).alloc('b', 2, 0).alloc('c', 3, 0).free('a').free('c').alloc('a', 4, 1);
    let frees: Vec<_> = script
        .pass()
        .into_iter()
        .filter_map(|op| match op {
            Op::Free { nth } => Some(nth),
            _ => None,
        })
        .collect();
    // Freeing a moves c to its place; freeing c there moves b; b and the second a go at the end.
    assert_eq!(frees, [0, 0, 0, 0]);
}
