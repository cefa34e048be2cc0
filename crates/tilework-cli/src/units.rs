//! Sizes, times and counts as people write them; how sizes are shown is the library's.

pub use tilework::units::{bytes, unit_of};

/// Reads a size: plain bytes, or a number with a unit, binary (`2GiB`, `2G`) or decimal (`2GB`).
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no size: write bytes, or a number with a unit such as 512MiB or 2GiB");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    // Whole numbers stay exact; a fraction is rounded to whole bytes.
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) => {
            let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
            (bytes < u64::MAX as f64).then_some(bytes.round() as u64)
        }
    };
    bytes.ok_or_else(|| format!("{text} is more than 64 bits can count"))
}

/// A time given in microseconds: `14.2 ms`.
pub fn micros(us: f64) -> String {
    match us {
        _ if us >= 1e6 => format!("{:.2} s", us / 1e6),
        _ if us >= 1e3 => format!("{:.1} ms", us / 1e3),
        _ => format!("{us:.1} us"),
    }
}

/// A count with its thousands apart: `58,314`.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Held over live: `1.0012`, a dash when nothing was live.
pub fn ratio(held: u64, live: u64) -> String {
    match live {
        0 => "-".to_owned(),
        _ => format!("{:.4}", held as f64 / live as f64),
    }
}

/// Reads a factor for sizes.
pub fn parse_scale(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(scale) if scale.is_finite() && scale > 0.0 => Ok(scale),
        _ => Err(format!("{text:?} is no factor: write a number above zero, such as 0.25")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_bytes_and_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("2GiB", 2 << 30),
            ("512MiB", 512 << 20),
            ("1.5 KiB", 1536),
            ("3k", 3072),
            ("2GB", 2_000_000_000),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "GiB", "-1", "1..5", "2 XiB", "1e9", "nan", "16777216TiB", "99999999999999999999"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_and_counts_are_shown_as_people_write_them() {
        assert_eq!(micros(12.34), "12.3 us");
        assert_eq!(micros(22_000.0), "22.0 ms");
        assert_eq!(micros(1_500_000.0), "1.50 s");
        assert_eq!(count(7), "7");
        assert_eq!(count(1_058_314), "1,058,314");
        assert_eq!(ratio(1001, 1000), "1.0010");
        assert_eq!(ratio(5, 0), "-");
    }
}
