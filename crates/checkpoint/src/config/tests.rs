use super::*;

fn config(text: &str) -> Config {
    Config::parse("config.json", text).unwrap()
}

fn error<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

/// Llama 3.1 8B's published numbers in both forms.
#[test]
fn both_forms_of_rope_agree() {
    let old = config(
        r#"{"rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "torch_dtype": "bfloat16"}"#,
    );
    let new = config(
        r#"{"rope_parameters": {"rope_theta": 500000.0, "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "dtype": "bfloat16"}"#,
    );
    let expected = RopeConfig {
        theta: 500_000.0,
        partial_rotary_factor: 1.0,
        scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        },
    };
    assert_eq!(old.rope(1e4).unwrap(), expected);
    assert_eq!(new.rope(1e4).unwrap(), expected);
    assert_eq!(old.dtype().unwrap(), Some(DType::BF16));
    assert_eq!(new.dtype().unwrap(), Some(DType::BF16));
    let older = config(
        r#"{"rope_theta": 500000.0, "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "type": "llama3"}}"#,
    );
    assert_eq!(older.rope(1e4).unwrap(), expected);
}

#[test]
fn plain_ropes() {
    let none = RopeConfig { theta: 1e4, partial_rotary_factor: 1.0, scaling: RopeScaling::None };
    for text in [
        "{}",
        r#"{"rope_scaling": null, "rope_theta": null}"#,
        r#"{"rope_scaling": {"type": "default"}}"#,
        r#"{"rope_parameters": {"rope_type": "default"}}"#,
        r#"{"rope_parameters": null, "rope_theta": 10000}"#,
    ] {
        assert_eq!(config(text).rope(1e4).unwrap(), none, "{text}");
    }
    let partial = config(r#"{"rope_theta": 1e6, "partial_rotary_factor": 0.5}"#).rope(1e4).unwrap();
    assert_eq!(partial, RopeConfig { theta: 1e6, partial_rotary_factor: 0.5, scaling: RopeScaling::None });
}

#[test]
fn ropes_that_are_refused() {
    let yarn = config(r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4}}"#);
    assert_eq!(
        error(yarn.rope(1e4)),
        "config.json (rope_scaling): rope type \"yarn\" is not supported (\"default\" and \"llama3\" are); \
         the model would answer wrongly with another"
    );
    let layers = config(r#"{"rope_parameters": {"full_attention": {"rope_type": "default"}}}"#);
    assert!(error(layers.rope(1e4)).contains("a rope of its own for each kind of layer (\"full_attention\")"));
    let theta = config(r#"{"rope_theta": -1}"#);
    assert_eq!(error(theta.rope(1e4)), "config.json: key \"rope_theta\": expected a number above 1 (not -1), found -1");
    let short = config(r#"{"rope_parameters": {"rope_type": "llama3", "factor": 8}}"#);
    assert_eq!(
        error(short.rope(1e4)),
        "config.json (rope_parameters): key \"low_freq_factor\": expected a number, found nothing"
    );
    let two = config(
        r#"{"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "llama3", "factor": 8,
        "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}}"#,
    );
    assert!(error(two.rope(1e4)).contains("expected what rope_parameters says, or null"));
}

#[test]
fn getters_name_key_expected_and_found() {
    let c = config(
        r#"{"hidden_size": "big", "layers": 4096.0, "half": 0.5, "negative": -3, "eps": 1e-6, "tied": 1, "model_type": 7,
            "list": [1, 2], "huge": 1e300, "absent": null}"#,
    );
    assert_eq!(c.usize("layers").unwrap(), 4096);
    assert_eq!(c.usize_or("absent", 5).unwrap(), 5);
    assert_eq!(c.f32("eps").unwrap(), 1e-6);
    assert_eq!(c.maybe_usizes("list").unwrap(), Some(vec![1, 2]));
    assert_eq!(
        error(c.usize("hidden_size")),
        "config.json: key \"hidden_size\": expected an integer from 0, found \"big\""
    );
    assert_eq!(error(c.usize("nowhere")), "config.json: key \"nowhere\": expected an integer, found nothing");
    assert!(error(c.usize("half")).ends_with("expected an integer from 0, found 0.5"));
    assert!(error(c.usize_or("negative", 1)).ends_with("found -3"));
    assert!(error(c.bool_or("tied", false)).ends_with("expected true or false, found 1"));
    assert!(error(c.model_type()).ends_with("expected a string, found 7"));
    assert!(error(c.f32("huge")).contains("expected a number"));
}

#[test]
fn files_that_are_refused() {
    assert_eq!(error(Config::parse("c.json", "[1]")), "c.json: expected a JSON object, found [1]");
    assert!(error(Config::parse("c.json", "{\"a\": ")).starts_with("c.json: not valid JSON: EOF while parsing"));
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
    assert!(error(Config::parse("c.json", &deep)).contains("recursion limit"));
    assert_eq!(
        error(Config::parse("c.json", r#"{"text_config": {}, "vision_config": {}}"#)),
        "c.json: this is a multimodal or encoder-decoder model (it has text_config, vision_config); \
         only text models with a flat configuration can be run"
    );
    assert!(error(Config::parse("c.json", r#"{"is_encoder_decoder": true}"#)).contains("it has is_encoder_decoder"));
}

#[test]
fn generation_is_merged() {
    let c = config(
        r#"{"eos_token_id": [154820, 154827, 154829], "pad_token_id": 154820, "bos_token_id": null, "temperature": 9}"#,
    );
    let own = Config::object(
        "generation_config.json",
        r#"{"eos_token_id": 154827, "temperature": 1.0, "top_p": 0.95, "do_sample": true, "top_k": 20}"#,
    );
    let g = GenerationConfig::merged(Some(&own.unwrap()), &c).unwrap();
    assert_eq!(g.eos, [154827, 154820, 154829]);
    assert_eq!((g.bos, g.pad, g.top_k), (None, Some(154820), Some(20)));
    assert_eq!((g.temperature, g.top_p, g.do_sample, g.min_p), (Some(1.0), Some(0.95), Some(true), None));
    let alone = GenerationConfig::merged(None, &c).unwrap();
    assert_eq!((alone.eos.len(), alone.temperature), (3, None));
    let bad = Config::object("g.json", r#"{"top_p": 3}"#).unwrap();
    assert_eq!(
        error(GenerationConfig::merged(Some(&bad), &c)),
        "g.json: key \"top_p\": expected a number from 0 to 1, found 3"
    );
    let bad = config(r#"{"eos_token_id": ["x"]}"#);
    assert!(error(GenerationConfig::merged(None, &bad)).contains("a token id or a list of token ids"));
}
