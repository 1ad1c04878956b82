//! Fingerprints and the page that compares checkpoints.

use crate::common::{fable, marlin};
use crate::{original, path, text};
use std::path::Path;

#[test]
fn verify_finds_what_was_altered() {
    let folder = tempfile::tempdir().unwrap();
    let out = path(folder.path(), "out");
    marlin(&["quantize", original(), "--format", "int8", "-o", &out]).ok();
    let at = |name: &str| Path::new(&out).join(name);
    let good = marlin(&["verify", &out, "--json"]).json();
    assert_eq!((good["wrong"].as_array().unwrap().len(), good["difference"].as_f64()), (0, Some(0.0)));
    let error = |name: &str| {
        let text = marlin(&["verify", &out]).error(1);
        assert!(text.contains("not as it was made") && text.contains(name), "{text}");
        text
    };
    let whole = std::fs::read(at("model.safetensors")).unwrap();
    let mut one_bit = whole.clone();
    let last = one_bit.len() - 1;
    one_bit[last] ^= 1;
    std::fs::write(at("model.safetensors"), &one_bit).unwrap();
    assert!(error("model.safetensors").contains("SHA-256 differs"));
    std::fs::write(at("model.safetensors"), &whole[..last]).unwrap();
    assert!(error("model.safetensors").contains(&format!("expected {} bytes, found {last}", whole.len())));
    std::fs::write(at("model.safetensors"), &whole).unwrap();
    std::fs::remove_file(at("config.json")).unwrap();
    error("config.json");
    // Files that are right, but give other logits than were written down.
    let other = path(folder.path(), "other");
    marlin(&["quantize", original(), "--format", "int4", "-o", &other]).ok();
    let fingerprint = |folder: &str| {
        let text = std::fs::read_to_string(Path::new(folder).join("fingerprint.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let mut mixed = fingerprint(&other);
    mixed["logits"] = fingerprint(&out)["logits"].clone();
    std::fs::write(Path::new(&other).join("fingerprint.json"), mixed.to_string()).unwrap();
    let mut short = mixed.clone();
    short["logits"].as_array_mut().unwrap().pop();
    std::fs::write(Path::new(&other).join("fingerprint.json"), short.to_string()).unwrap();
    let text = marlin(&["verify", &other]).error(1);
    assert!(text.contains("expected logits after each of 16 tokens, found 15 rows"), "{text}");
    std::fs::write(Path::new(&other).join("fingerprint.json"), mixed.to_string()).unwrap();
    let text = marlin(&["verify", &other]).error(1);
    assert!(text.contains("after token 0: expected"), "{text}");
    assert!(marlin(&["verify", &fable()]).error(1).contains("there is no fingerprint"));
}

/// The value that a page has exactly beside what it shows.
fn exact(value: &serde_json::Value) -> String {
    format!("<data value=\"{:?}\">", value.as_f64().unwrap())
}

#[test]
fn a_page_compares_checkpoints_with_their_original() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let at = |name: &str| path(folder.path(), name);
    let (small, smaller, page, results) = (at("int8<b>"), at("int4"), at("page.html"), at("results.json"));
    for (format, out) in [("int8", &small), ("int4", &smaller)] {
        marlin(&["quantize", original(), "--format", format, "-o", out, "--threads", "2"]).ok();
    }
    let few = ["--text", &text, "--tokens", "200", "--threads", "2"];
    marlin(&[&["quantize", "report", original(), &small, &smaller, "-o", &page], &few[..]].concat()).ok();
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("int8&lt;b&gt;") && html.contains("</b> int4") && !html.contains("int8<b>"));
    assert!(!html.contains("http") && !html.contains(" src=") && !html.contains(" href="));

    let mut measured = String::new();
    for out in [&smaller, &small] {
        let outcome = marlin(&[&["eval", "kld", original(), out, "--json"], &few[..]].concat());
        let json = outcome.json();
        for value in [&json["mean"], &json["stderr"], &json["ppl_quantised"], &json["ppl_quantised_stderr"]] {
            assert!(html.contains(&exact(value)), "{value}");
        }
        for value in [&json["ppl_reference"], &json["top1_agreement"], &json["flips"]["mean"], &json["flips"]["tokens"]]
        {
            assert!(html.contains(&exact(value)), "{value}");
        }
        let inspected = marlin(&["inspect", out, "--json"]).json();
        assert!(html.contains(&exact(&inspected["storage"]["bits_per_weight"])));
        assert!(html.contains(&format!("<data value=\"{}\">", inspected["bytes"])));
        measured.push_str(&json.to_string());
    }

    // What was measured before makes the same page.
    std::fs::write(&results, &measured).unwrap();
    let again = at("again.html");
    let from = ["quantize", "report", original(), &small, &smaller, "--results", &results, "-o", &again];
    marlin(&from).ok();
    assert!(std::fs::read_to_string(&again).unwrap() == html);

    std::fs::write(&results, &measured[..measured.find("}{").unwrap() + 1]).unwrap();
    let missing = marlin(&from).error(1);
    assert!(missing.contains("--results: there is none of int8<b> from fable"), "{missing}");
    std::fs::write(&results, "{\"mean\": 1}").unwrap();
    let wrong = marlin(&from).error(1);
    assert!(wrong.contains("results.json: expected what eval kld --json writes"), "{wrong}");
    let nowhere = at("nowhere/page.html");
    let refused = marlin(&[&["quantize", "report", original(), &small, "-o", &nowhere], &few[..]].concat()).error(1);
    assert!(refused.contains("no file can be written there"), "{refused}");
}
