//! What groups take of the host, and give back.

use super::*;

/// Bytes of a buffer that contents are kept in.
const CHUNK: u64 = 32 * MIB;

impl Rig {
    /// Evicts and restores a group of these blocks, whose contents are then elsewhere.
    fn around(&mut self, group: GroupId, blocks: &[u64]) {
        self.front.evict(group).unwrap();
        self.front.restore(group, None).unwrap();
        blocks.iter().for_each(|&block| self.moved(block));
    }

    fn end(&mut self, group: GroupId, blocks: &[u64]) {
        blocks.iter().for_each(|&block| self.free(block));
        self.front.remove_group(group).unwrap();
    }
}

#[test]
fn pinned_memory_goes_with_the_groups_that_could_fill_it() {
    let mut rig = rig();
    let (unet, vae) = (rig.group("unet"), rig.group("vae"));
    let large = [(80 * MIB, A), (MIB, B)].map(|(bytes, stream)| rig.used_for(unet, bytes, stream));
    let small = [rig.used_for(vae, 10 * MIB, A)];
    rig.around(unet, &large);
    rig.around(vae, &small);
    // Three chunks and one, of which the second group needs but one; the lanes of a group do not share.
    assert_eq!(rig.world.buffer_bytes(), 4 * CHUNK);
    rig.front.evict(vae).unwrap();
    rig.end(unet, &large);
    assert_eq!(rig.world.buffer_bytes(), CHUNK);
    rig.front.restore(vae, None).unwrap();
    rig.moved(small[0]);
    rig.around(vae, &small);
    assert_eq!(rig.world.buffer_bytes(), CHUNK, "it is used again");
    rig.end(vae, &small);
    assert_eq!(rig.world.buffer_bytes(), 0);
    rig.check();
}

#[test]
fn pinned_memory_beyond_a_lower_budget_goes_once_nothing_is_kept_in_it() {
    let mut rig = rig();
    let group = rig.group("unet");
    let blocks = [rig.used_for(group, 3 * CHUNK, A)];
    rig.around(group, &blocks);
    rig.front.set_hosting(Hosting { pinned_bytes: 2 * CHUNK + 5, directory: None });
    assert_eq!(rig.world.buffer_bytes(), 3 * CHUNK, "of the budget's last chunk a part counts, too");
    rig.front.set_hosting(Hosting { pinned_bytes: 3 * CHUNK, directory: None });
    rig.front.evict(group).unwrap();
    rig.front.set_hosting(Hosting { pinned_bytes: CHUNK, directory: None });
    assert_eq!(rig.world.buffer_bytes(), 3 * CHUNK, "contents are kept in it");
    rig.front.restore(group, None).unwrap();
    rig.moved(blocks[0]);
    assert_eq!(rig.world.buffer_bytes(), CHUNK);
    rig.check();
}

#[test]
fn a_host_without_room_is_not_asked_for_it() {
    let pinned = Hosting { pinned_bytes: 1 << 40, directory: None };
    for hosting in [pinned.clone(), Hosting { pinned_bytes: CHUNK, directory: None }, Hosting::default()] {
        let mut rig = Rig::new();
        rig.front.set_hosting(hosting.clone());
        let group = rig.group("unet");
        let blocks = [rig.used_for(group, 3 * CHUNK, A)];
        let left = |rig: &mut Rig, available| {
            Arc::get_mut(&mut rig.front.store).expect("nothing is kept").available = available;
        };
        left(&mut rig, || Some(300 * MIB));
        let refused = rig.front.evict(group).unwrap_err().to_string();
        assert!(
            refused.starts_with(
                "96 MiB of device memory cannot be kept on the host: it has 300 MiB left, of which 256 MiB are not"
            ),
            "{refused}"
        );
        assert_eq!((rig.residence(group), rig.front.stats().kept), (Residence::Resident, 0));
        assert_eq!(rig.world.buffer_bytes(), 0, "nothing was made");
        rig.launch(A, blocks[0]);
        left(&mut rig, || Some(400 * MIB));
        rig.around(group, &blocks);
        // What it takes is there already.
        left(&mut rig, || Some(0));
        assert_eq!(rig.front.evict(group).is_ok(), hosting == pinned, "{hosting:?}");
    }
}
