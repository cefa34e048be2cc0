use super::*;

#[test]
fn a_slot_is_reused_under_another_id() {
    let mut blocks = Blocks::new();
    let first = blocks.insert('a');
    assert_eq!(blocks.remove(first), Ok('a'));
    let second = blocks.insert('b');
    assert_ne!(first, second);
    assert_eq!(blocks.slots.len(), 1);
    assert_eq!(blocks.get(second), Ok(&'b'));
    assert_eq!(blocks.remove(first), Err(Error::DoubleFree(first)));
}

#[test]
fn an_id_never_issued_is_told_from_one_freed() {
    let mut blocks = Blocks::new();
    let id = blocks.insert(());
    for stranger in [BlockId(0), BlockId(id.0 + 1), BlockId(id.0 + (1 << 32)), BlockId(u64::MAX)] {
        assert_eq!(blocks.remove(stranger), Err(Error::UnknownBlock(stranger)));
    }
    blocks.remove(id).unwrap();
    assert_eq!(blocks.remove(id), Err(Error::DoubleFree(id)));
    // The generation that comes next is not issued yet.
    let coming = BlockId(id.0 + (1 << 32));
    assert_eq!(blocks.remove(coming), Err(Error::UnknownBlock(coming)));
}

#[test]
fn slots_freed_last_are_used_first_and_none_is_lost() {
    let mut blocks = Blocks::new();
    let ids: Vec<_> = (0..8).map(|n| blocks.insert(n)).collect();
    for &id in &ids {
        blocks.remove(id).unwrap();
    }
    assert!(blocks.is_empty());
    let slots: Vec<_> = (0..9).map(|n| unpack(blocks.insert(n)).1).collect();
    assert_eq!(slots, [7, 6, 5, 4, 3, 2, 1, 0, 8]);
    assert_eq!(blocks.iter().count(), 9);
}

#[test]
fn a_slot_out_of_generations_is_retired() {
    let mut blocks = Blocks::new();
    let first = blocks.insert(());
    blocks.slots[0].generation = u32::MAX;
    let last = pack(u32::MAX, 0);
    blocks.remove(last).unwrap();
    assert_eq!(unpack(blocks.insert(())).1, 1);
    assert_eq!(blocks.remove(last), Err(Error::DoubleFree(last)));
    assert_eq!(blocks.remove(first), Err(Error::DoubleFree(first)));
    assert_eq!(blocks.remove(BlockId(0)), Err(Error::UnknownBlock(BlockId(0))));
}
