//! A look at a template's tags before it is parsed.

/// Deepest nesting of blocks; the parser recurses.
pub(super) const MAX_NESTING: usize = 100;

/// The source with transformers' `{% generation %} ... {% endgeneration %}` made neutral, or the line where blocks nest
/// too deeply.
///
/// Those tags mark what the assistant said, for training. Here they are a scope (`with`), which is what they mean for
/// variables, and nothing else.
pub(super) fn prepare(source: &str) -> Result<String, usize> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut depth = 0usize;
    while let Some(start) = ["{%", "{#", "{{"].iter().filter_map(|open| rest.find(open)).min() {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let close = match &tag[..2] {
            "{%" => "%}",
            "{#" => "#}",
            _ => "}}",
        };
        let end = tag_end(tag, close);
        let inner = &tag[2..end];
        let word = if close == "%}" { first_word(inner) } else { "" };
        match word {
            "generation" | "endgeneration" => {
                out.push_str("{%");
                out.push_str(&inner.replacen(word, &word.replace("generation", "with"), 1));
            }
            _ => out.push_str(&tag[..end]),
        }
        match word {
            "if" | "for" | "macro" | "call" | "filter" | "with" | "autoescape" | "block" | "generation" => depth += 1,
            "set" if !inner.contains('=') => depth += 1,
            word if word.starts_with("end") => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            return Err(out.lines().count());
        }
        rest = &tag[end..];
        if word == "raw"
            && let Some(closing) = end_of_raw(rest)
        {
            out.push_str(&rest[..closing]);
            rest = &rest[closing..];
        }
    }
    Ok(out + rest)
}

fn first_word(inner: &str) -> &str {
    let inner = inner.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
    inner.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// Where the `{% endraw %}` begins.
fn end_of_raw(source: &str) -> Option<usize> {
    source.match_indices("{%").map(|(at, _)| at).find(|&at| first_word(&source[at + 2..]) == "endraw")
}

/// Where the tag that starts `tag` is closed (before its `close`), strings skipped.
fn tag_end(tag: &str, close: &str) -> usize {
    let mut quote = None;
    let bytes = tag.as_bytes();
    let mut i = 2;
    while i < bytes.len() {
        match (quote, bytes[i]) {
            (Some(_), b'\\') => i += 1,
            (Some(q), b) if q == b => quote = None,
            (None, b'"' | b'\'') if close != "#}" => quote = Some(bytes[i]),
            (None, _) if bytes[i..].starts_with(close.as_bytes()) => return i,
            _ => {}
        }
        i += 1;
    }
    tag.len()
}
