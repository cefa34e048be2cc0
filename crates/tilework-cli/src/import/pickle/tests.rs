use super::*;

/// What the instructions leave, protocol 4 before them and the end after.
fn read(instructions: &[u8]) -> Result<Pickle> {
    Pickle::read([b"\x80\x04", instructions, b"."].concat())
}

#[track_caller]
fn refused(instructions: &[u8]) -> String {
    format!("{:#}", read(instructions).unwrap_err())
}

#[test]
fn numbers_are_read_at_every_width() {
    for (instructions, value) in [
        (&b"K\xff"[..], 255),
        (b"M\xff\xff", 65535),
        (b"J\xff\xff\xff\xff", -1),
        (b"\x8a\x00", 0),
        (b"\x8a\x01\xff", -1),
        (b"\x8a\x06\x00\x00\x00\x00\x00\x7f", 0x7f00_0000_0000),
        (b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\x7f\x00", i64::MAX),
    ] {
        assert_eq!(read(instructions).unwrap().root(), Value::Int(value), "{instructions:?}");
    }
    assert_eq!(read(b"G\x3f\xf8\0\0\0\0\0\0").unwrap().root(), Value::Float(1.5));
}

#[test]
fn what_is_shared_stays_shared_and_a_list_may_hold_itself() {
    // l = []; l.append(l); l.append(7)
    let pickle = read(b"]\x94(h\x00K\x07e").unwrap();
    let items = pickle.items(pickle.root()).unwrap();
    assert_eq!(items, [pickle.root(), Value::Int(7)]);
}

#[test]
fn a_dictionary_has_the_last_of_equal_keys() {
    let pickle = read(b"}(\x8c\x01aK\x01\x8c\x01bK\x02\x8c\x01aK\x03u").unwrap();
    assert_eq!(pickle.get(pickle.root(), "a"), Some(Value::Int(3)));
    assert_eq!(pickle.get(pickle.root(), "b"), Some(Value::Int(2)));
    assert_eq!(pickle.get(pickle.root(), "c"), None);
}

#[test]
fn nothing_is_called() {
    // os.system("true")
    assert!(refused(b"cos\nsystem\n\x8c\x04true\x85R").contains("nothing but plain values"));
    assert!(refused(b"\x8c\x02os\x8c\x06system\x93").contains("nothing but plain values"));
}

#[test]
fn nonsense_is_an_error() {
    for instructions in [
        &b""[..],
        b"a",
        b"e",
        b"K",
        b"h\x07",
        b"X\xff\xff\xff\xff",
        b"(a",
        b"K\x01(s",
        b"K\x01K\x02a",
        b"\xff",
        b"q\x01",
    ] {
        refused(instructions);
    }
    assert!(Pickle::read(vec![]).is_err());
    assert!(Pickle::read(b"plain text".to_vec()).is_err());
}

#[test]
fn depth_does_no_harm() {
    // A list in a list, a million times.
    let deep = [vec![b']'; 1_000_000], vec![b'a'; 999_999]].concat();
    assert_eq!(read(&deep).unwrap().lists.len(), 1_000_000);
}
