//! Sizes as people read them: in binary units, wherever a report, a picture or an error shows one.
#![forbid(unsafe_code)]

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// The largest binary unit that `bytes` fills: its name and length.
pub fn unit_of(bytes: u64) -> (&'static str, u64) {
    UNITS.into_iter().find(|unit| bytes >= unit.1).unwrap_or(("B", 1))
}

/// A size in the largest binary unit that it fills, to two places: `9.89 GiB`.
pub fn bytes(bytes: u64) -> String {
    match unit_of(bytes) {
        (name, 1) => format!("{bytes} {name}"),
        (name, unit) => format!("{:.2} {name}", bytes as f64 / unit as f64),
    }
}

/// As [`bytes`], with nothing lost: `2 GiB`, or `117.74 MiB (123456789 bytes)` where the unit does not divide it. For
/// errors: whoever looks for a cause needs the figure itself.
pub fn exact(size: u64) -> String {
    let (name, unit) = unit_of(size);
    if size.is_multiple_of(unit) {
        return format!("{} {name}", size / unit);
    }
    format!("{} ({size} bytes)", bytes(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_the_unit_they_fill() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.00 KiB");
        assert_eq!(bytes(10_623_799_375), "9.89 GiB");
        assert_eq!(unit_of(0), ("B", 1));
        assert_eq!(unit_of(5 << 40), ("TiB", 1 << 40));
    }

    #[test]
    fn an_exact_size_loses_no_byte() {
        for (size, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (2 << 30, "2 GiB"),
            (1536 << 20, "1.50 GiB (1610612736 bytes)"),
            (123_456_789, "117.74 MiB (123456789 bytes)"),
            ((1 << 20) + 1, "1.00 MiB (1048577 bytes)"),
        ] {
            assert_eq!(exact(size), shown);
        }
    }
}
