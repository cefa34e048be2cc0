//! Whatever comes, in any order.

use super::*;

/// Random operations on four streams, with captures into graphs' pools, forgotten streams, limits and failing
/// calls. The world finds races and unmappings under work, the rig blocks that share memory.
#[test]
fn random_operations_race_with_nothing() {
    for seed in 1..=200 {
        random_operations(seed, seed % 3 == 0);
    }
}

fn random_operations(seed: u64, failing: bool) {
    let mut rig =
        Rig::with(Options { heap_bytes: 2 * TILE, mapping_age: 1, heap_age: 1, ..Options::default() });
    rig.front.set_limit(Some(40 * TILE)).unwrap();
    let mut random = xorshift(seed);
    let streams = [A, B, C, Stream(0)];
    let mut users: BTreeMap<u64, Vec<Stream>> = BTreeMap::new();
    let mut pool: Option<(u64, Stream)> = None;
    let mut pools = 0;
    if failing {
        rig.faults.set(Plan::every(13));
    }
    for _ in 0..600 {
        let stream = streams[random() as usize % 4];
        let nth = random() as usize % rig.live.len().max(1);
        let some = rig.live.iter().nth(nth).map(|(&address, (_, stream, _))| (address, *stream));
        match random() % 32 {
            0..10 => {
                let bytes = match random() % 4 {
                    0 => 1 + random() % 4096,
                    1 => 1 + random() % MIB,
                    _ => 1 + random() % (6 * TILE),
                };
                match rig.try_alloc(bytes, stream) {
                    Ok(address) => {
                        users.insert(address, vec![stream]);
                        rig.launch(stream, address);
                    }
                    Err(Error::OutOfMemory { .. }) => {}
                    Err(error) => assert!(failing, "{error}"),
                }
            }
            10..17 => {
                if let Some((address, owner)) = some {
                    // The program orders its own uses of a block; the front is told who they are.
                    let users = users.get_mut(&address).expect("every live block has its users");
                    let user = if random().is_multiple_of(2) { owner } else { stream };
                    users.iter().for_each(|&other| rig.world.order(user, other));
                    if !users.contains(&user) {
                        rig.front.record_stream(address, user).unwrap();
                        users.push(user);
                    }
                    rig.launch(user, address);
                }
            }
            17..25 => {
                if let Some((address, _)) = some {
                    users.remove(&address);
                    rig.free(address);
                }
            }
            25..27 => rig.world.run(stream),
            27 => drop(rig.front.end_of_execution().inspect_err(|error| assert!(failing, "{error}"))),
            28 => drop(rig.front.trim().inspect_err(|error| assert!(failing, "{error}"))),
            29 => rig.front.set_limit(Some((20 + random() % 30) * TILE)).unwrap(),
            30 => match pool.take() {
                None => {
                    pools += 1;
                    pool = Some((pools, stream));
                    rig.world.capture(stream, true);
                    rig.front.begin_pool(PoolId(pools, 0), Box::new(move |of| of == stream)).unwrap();
                }
                Some((id, captured)) => {
                    rig.world.capture(captured, false);
                    rig.front.end_pool(PoolId(id, 0)).unwrap();
                    rig.front.release_pool(PoolId(id, 0)).unwrap();
                }
            },
            _ if pool.is_some_and(|(_, captured)| captured == stream) => {}
            _ => {
                // A stream that is made later may have the same name: its uses are told anew.
                users.values_mut().for_each(|users| users.retain(|&user| user != stream));
                rig.front.forget_stream(stream).unwrap_or_else(|error| assert!(failing, "{error}"));
            }
        }
        rig.check();
    }
    rig.faults.clear();
    let live: Vec<u64> = rig.live.keys().copied().collect();
    live.into_iter().for_each(|address| rig.free(address));
    if let Some((id, captured)) = pool {
        rig.world.capture(captured, false);
        rig.front.release_pool(PoolId(id, 0)).unwrap();
    }
    rig.front.trim().unwrap();
    rig.check();
    assert_eq!(rig.front.usage().held, 0, "seed {seed}");
    assert_eq!(rig.front.usage().mapped, 0, "seed {seed}");
}
