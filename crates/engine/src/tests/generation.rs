use super::*;
use marlin_checkpoint::text::Tokenizer;

/// Byte-level tokens: a to e, a space, and the three bytes of U+65E5 one by one; `<end>` is special.
fn tokenizer() -> Tokenizer {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"post_processor":null,
        "added_tokens":[{"id":9,"content":"<end>","single_word":false,"lstrip":false,"rstrip":false,
        "normalized":false,"special":true}],
        "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
        "decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
        "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
        "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
        "vocab":{"a":0,"b":1,"c":2,"d":3,"e":4,"Ġ":5,"æ":6,"Ĺ":7,"¥":8},"merges":[]}}"#;
    Tokenizer::from_bytes("test", json.as_bytes(), None).unwrap()
}

fn sample(token: u32) -> Sample {
    Sample { token, logprob: -1.0, top: Vec::new(), margin: 1.0 }
}

/// Accepts tokens until the answer ends: pieces, reason, held-back text.
fn run(request: &Request, max_tokens: usize, tokens: &[u32]) -> (Vec<String>, Option<FinishReason>, String) {
    let t = tokenizer();
    let mut g = Generation::new(RequestId(1), request, max_tokens, &[9], 10, 0, Some(&t));
    let mut pieces = Vec::new();
    for token in tokens {
        let (event, end) = g.accept(sample(*token));
        pieces.push(event.text);
        if end.is_some() {
            return (pieces, end, g.finish());
        }
    }
    (pieces, None, g.finish())
}

#[test]
fn characters_are_whole_and_eos_ends() {
    let (pieces, reason, rest) = run(&Request::new(vec![0]), 10, &[1, 6, 7, 8, 9, 1]);
    assert_eq!(pieces, ["b", "", "", "日", ""]);
    assert_eq!((reason, rest.as_str()), (Some(FinishReason::StopToken(9)), ""));
}

#[test]
fn a_character_begun_in_the_prompt_is_completed() {
    let (pieces, ..) = run(&Request::new(vec![0, 6, 7]), 10, &[8]);
    assert_eq!(pieces, ["日"]);
}

#[test]
fn length_ends_and_gives_what_was_held() {
    let mut request = Request::new(vec![0]);
    request.stop = vec!["bcd".into()];
    let (pieces, reason, rest) = run(&request, 3, &[0, 1, 2, 3]);
    assert_eq!((pieces.concat(), reason, rest), ("a".into(), Some(FinishReason::Length), "bc".into()));
    let (_, reason, rest) = run(&Request::new(vec![0]), 2, &[6, 7]);
    assert_eq!((reason, rest.as_str()), (Some(FinishReason::Length), "\u{fffd}"));
}

#[test]
fn stop_strings_cross_tokens_and_beat_length() {
    let mut request = Request::new(vec![0]);
    request.stop = vec!["b c".into()];
    let (pieces, reason, rest) = run(&request, 5, &[0, 1, 5, 2, 3]);
    assert_eq!((pieces.concat().as_str(), rest.as_str()), ("a", ""));
    assert_eq!(reason, Some(FinishReason::StopString("b c".into())));
    let (_, reason, _) = run(&request, 4, &[0, 1, 5, 2, 3]);
    assert_eq!(reason.unwrap().name(), "stop");
}

#[test]
fn eos_can_be_ignored_and_other_tokens_stop() {
    let mut request = Request::new(vec![0]);
    (request.ignore_eos, request.stop_tokens) = (true, vec![3]);
    let (pieces, reason, _) = run(&request, 10, &[9, 1, 3]);
    assert_eq!((pieces.concat().as_str(), reason), ("b", Some(FinishReason::StopToken(3))));
    request.skip_special = false;
    assert_eq!(run(&request, 10, &[9, 1, 3]).0.concat(), "<end>b");
}

#[test]
fn draws_and_counts_follow_the_answer() {
    let mut request = Request::new(vec![0, 1, 0]);
    let plain = Generation::new(RequestId(1), &request, 9, &[], 10, 5, None);
    assert!(plain.sample_row(0).seen.is_empty());
    request.sampling.repetition_penalty = 1.1;
    let mut g = Generation::new(RequestId(1), &request, 9, &[], 10, 5, None);
    for token in [1, 4, 4] {
        assert_eq!(g.accept(sample(token)).0.text, "");
    }
    let row = g.sample_row(0);
    assert_eq!((row.draw, row.seed, row.vocab), (3, 5, 10));
    let seen = |token, prompt, answer| Seen { token, prompt, answer };
    assert_eq!(row.seen, [seen(0, 2, 0), seen(1, 1, 1), seen(4, 0, 2)]);
}

/// Tokens of single bytes, as SentencePiece has them: a, and the bytes of U+65E5.
#[test]
fn what_the_decoder_holds_of_the_prompt_is_not_told() {
    let json = r#"{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"post_processor":null,
        "added_tokens":[],"pre_tokenizer":null,
        "decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]},
        "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
        "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":true,"ignore_merges":false,
        "vocab":{"a":0,"<0xE6>":1,"<0x97>":2,"<0xA5>":3},"merges":[]}}"#;
    let t = Tokenizer::from_bytes("test", json.as_bytes(), None).unwrap();
    let told = |prompt: &[u32], answer: &[u32]| {
        let mut g = Generation::new(RequestId(1), &Request::new(prompt.to_vec()), 9, &[], 4, 0, Some(&t));
        let mut text: String = answer.iter().map(|token| g.accept(sample(*token)).0.text).collect();
        text.push_str(&g.finish());
        text
    };
    // A whole character in the prompt, which the decoder holds because more bytes could follow.
    assert_eq!(told(&[0, 1, 2, 3], &[0]), "a");
    assert_eq!(told(&[0, 1, 2, 3], &[1, 2, 3, 0]), "日a");
    assert_eq!(told(&[0, 1, 2, 3], &[]), "");
    // One that the answer completes, and one that it does not.
    assert_eq!(told(&[0, 1, 2], &[3, 0]), "日a");
    assert_eq!(told(&[0, 1, 2], &[0]), "a");
}
