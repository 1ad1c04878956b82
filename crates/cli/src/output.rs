//! What goes to standard output and standard error.

use crate::error::Result;
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Prints text and flushes, so that it is seen at once and a closed pipe is noticed.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints `value` as indented JSON.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Tells the user something that is not the result.
pub fn note(text: &str) {
    // Nothing can be done about a standard error that is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether answers are shown to a person.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// `12,690,176`
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `25.4 MB`
pub fn bytes(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = if unit == "B" || value >= 100.0 { 0 } else { 1 };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1e3;
    }
    format!("{value:.1} TB")
}

/// What was compiled and compared.
pub fn kernels(w: &marlin_gpu::Warmth) -> String {
    let unchecked = match w.unchecked.len() {
        0 => String::new(),
        n => format!(", {n} more in other variants only"),
    };
    format!(
        "kernels: {} compiled, {} found on disk ({}); {} agree with the reference{unchecked} ({})",
        w.compiled,
        w.found,
        seconds(w.compile_seconds),
        w.checked,
        seconds(w.check_seconds)
    )
}

/// What was computed on slower paths, if anything was.
pub fn fallbacks(found: &marlin_backend::fallback::Snapshot) -> Option<String> {
    let last = found.last.as_ref()?;
    let reasons: Vec<String> = found.by_reason.iter().map(|(code, n)| format!("{code} {}", grouped(*n))).collect();
    let mixture = match last.experts {
        0 => String::new(),
        n => format!(", {} of {n} experts", last.top_k),
    };
    Some(format!(
        "slower paths: {} products ({}); the last: {} for {} rows{mixture} ({})",
        grouped(found.total),
        reasons.join(", "),
        last.module,
        last.batch,
        last.reason.code()
    ))
}

/// `12.7 M`
pub fn count(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["", " K", " M", " B"] {
        if value < 999.5 {
            let digits = if unit.is_empty() || value >= 100.0 { 0 } else { 1 };
            return format!("{value:.digits$}{unit}");
        }
        value /= 1e3;
    }
    format!("{value:.1} T")
}

/// A number with three digits that matter: `1,234`, `56.7`, `0.89`.
pub fn rate(number: f64) -> String {
    match number {
        n if !n.is_finite() => "-".to_owned(),
        n if n >= 100.0 => grouped(n.round() as u64),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

/// `850 ms`, `12.3 s`
pub fn seconds(value: f64) -> String {
    match value {
        s if s < 0.01 => format!("{:.1} ms", 1e3 * s),
        s if s < 1.0 => format!("{:.0} ms", 1e3 * s),
        s if s < 100.0 => format!("{s:.1} s"),
        s => format!("{:.0} min", s / 60.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 12_690_176].map(grouped), ["0", "999", "1,000", "12,690,176"]);
        assert_eq!([5, 999_600, 25_400_000, 16_060_000_000].map(bytes), ["5 B", "1.0 MB", "25.4 MB", "16.1 GB"]);
        assert_eq!([12_690_176, 30_532_122_624].map(count), ["12.7 M", "30.5 B"]);
        assert_eq!([1234.4, 56.71, 0.888, f64::NAN].map(rate), ["1,234", "56.7", "0.89", "-"]);
        assert_eq!([0.0012, 0.85, 12.34].map(seconds), ["1.2 ms", "850 ms", "12.3 s"]);
    }
}
