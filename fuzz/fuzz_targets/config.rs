//! Any text as config.json and generation_config.json: every getter answers or refuses.
#![no_main]

use libfuzzer_sys::fuzz_target;
use marlin_checkpoint::text::TokenizerConfig;
use marlin_checkpoint::{Config, GenerationConfig};

fuzz_target!(|input: &str| {
    // Two files, where a line of dashes parts them.
    let (first, second) = input.split_once("\n---\n").unwrap_or((input, input));
    let _ = TokenizerConfig::parse("tokenizer_config.json", second);
    let own = Config::object("generation_config.json", second).ok();
    let Ok(config) = Config::parse("config.json", first) else { return };
    let _ = config.model_type();
    let _ = config.dtype();
    let _ = config.quantization_method();
    if let Ok(rope) = config.rope(10_000.0) {
        assert!(rope.theta.is_finite() && rope.partial_rotary_factor > 0.0);
    }
    if let Ok(generation) = GenerationConfig::merged(own.as_ref(), &config) {
        assert!(generation.top_p.is_none_or(|p| (0.0..=1.0).contains(&p)));
    }
    for key in config.entries().keys() {
        let _ = config.usize(key);
        let _ = config.f32(key);
        let _ = config.f64(key);
        let _ = config.bool_or(key, true);
        let _ = config.string(key);
        let _ = config.maybe_usizes(key);
        let _ = config.maybe_strings(key);
        let _ = config.maybe_object(key);
    }
});
