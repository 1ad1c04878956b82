//! Numbers as people read them.

/// A number with what it is exactly beside what is shown.
pub fn data(value: f64, shown: &str) -> String {
    format!("<data value=\"{value:?}\">{shown}</data>")
}

/// Four digits that matter; powers of ten where the number is very large or small.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{value:.3e}");
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 7) as usize;
    format!("{value:.digits$}")
}

/// A number and its standard error, to two digits of the error that matter and at least two after the point.
pub fn with_error(value: f64, error: f64) -> String {
    let digits = if error > 0.0 { 1 - error.log10().floor() as i32 } else { 4 }.clamp(2, 9) as usize;
    let [value, error] = [value, error].map(|v| data(v, &format!("{v:.digits$}")));
    format!("<span class=\"whole\">{value} ± {error}</span>")
}

/// A part of one as per cent, exact beside it.
pub fn part(value: f64) -> String {
    data(value, &format!("{:.2} %", 100.0 * value))
}

/// `12,690,176`
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let comma = |i: usize| if i > 0 && (digits.len() - i).is_multiple_of(3) { "," } else { "" };
    digits.chars().enumerate().map(|(i, digit)| format!("{}{digit}", comma(i))).collect()
}

/// What a size is told in: its name, and bytes of one.
pub fn unit(bytes: u64) -> (&'static str, f64) {
    match bytes {
        0..1_000_000 => ("kB", 1e3),
        1_000_000..1_000_000_000 => ("MB", 1e6),
        _ => ("GB", 1e9),
    }
}

/// `25.4 MB`
pub fn bytes(number: u64) -> String {
    let (name, one) = unit(number);
    let value = number as f64 / one;
    let digits = if value < 100.0 { 2 } else { 1 };
    format!("{value:.digits$} {name}")
}
