use super::*;

/// Feeds `text` in pieces of `n` characters; gives what came out and the stop string found.
fn feed(stops: &[&str], text: &str, n: usize) -> (String, Option<String>) {
    let mut matcher = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect());
    let letters: Vec<char> = text.chars().collect();
    let mut out = String::new();
    for piece in letters.chunks(n) {
        let (text, stop) = matcher.push(&piece.iter().collect::<String>());
        out.push_str(&text);
        if stop.is_some() {
            assert_eq!(matcher.finish(), "");
            return (out, stop);
        }
    }
    out.push_str(&matcher.finish());
    (out, None)
}

#[test]
fn the_same_in_pieces_of_any_size() {
    let cases: [(&[&str], &str, &str, Option<&str>); 8] = [
        (&["END"], "one END two", "one ", Some("END")),
        (&["END"], "one EN two", "one EN two", None),
        (&["END"], "one ENEND", "one EN", Some("END")),
        (&["ab", "xaby"], "xaby", "x", Some("ab")),
        (&["b", "ab"], "cab", "c", Some("ab")),
        (&["\n\n"], "a\n\nb", "a", Some("\n\n")),
        (&["日本"], "in 日日本", "in 日", Some("日本")),
        (&["aab"], "aaaab", "aa", Some("aab")),
    ];
    for (stops, text, expected, stop) in cases {
        for n in 1..=text.chars().count() {
            assert_eq!(feed(stops, text, n), (expected.into(), stop.map(String::from)), "{stops:?} {text:?} by {n}");
        }
    }
}

#[test]
fn only_what_could_be_a_beginning_is_held() {
    let mut m = StopMatcher::new(vec!["</s>".into(), "User:".into()]);
    assert_eq!(m.push("hello <"), ("hello ".into(), None));
    assert_eq!(m.push("b> Us"), ("<b> ".into(), None));
    assert_eq!(m.push("ing"), ("Using".into(), None));
    assert_eq!(m.push("</s"), ("".into(), None));
    assert_eq!(m.finish(), "</s");
}

#[test]
fn without_stops_nothing_is_held() {
    let mut m = StopMatcher::new(vec![String::new()]);
    assert_eq!(m.push("abc"), ("abc".into(), None));
    assert_eq!(m.finish(), "");
}
