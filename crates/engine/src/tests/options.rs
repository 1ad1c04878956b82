use super::*;

const BLOCK: usize = 1000;

fn size(options: &EngineOptions, available: Option<usize>) -> KvSizing {
    options.size_kv(4096, BLOCK, available).unwrap()
}

#[test]
fn several_contexts_where_memory_is_plenty() {
    let sizing = size(&EngineOptions::default(), None);
    assert_eq!((sizing.blocks, sizing.context, sizing.is_short()), (512, 4096, false));
    let one = EngineOptions { max_batch: 1, ..EngineOptions::default() };
    assert_eq!(size(&one, None).blocks, 128);
}

#[test]
fn one_context_within_half_of_what_is_free_else_what_fits() {
    assert_eq!(size(&EngineOptions::default(), Some(300 * BLOCK)).blocks, 128);
    assert_eq!(size(&EngineOptions::default(), Some(1200 * BLOCK)).blocks, 300);
    let short = size(&EngineOptions::default(), Some(100 * BLOCK));
    assert_eq!((short.blocks, short.context, short.is_short()), (50, 1600, true));
    assert_eq!(short.to_string(), "KV memory for 1600 tokens (1 MB); a full context of 4096 tokens would take 1 MB");
}

#[test]
fn explicit_sizes() {
    let tokens = EngineOptions { kv_tokens: Some(100), ..EngineOptions::default() };
    assert_eq!((size(&tokens, Some(0)).blocks, size(&tokens, Some(0)).context), (4, 100 + 28));
    let bytes = EngineOptions { kv_memory: Some(10 * BLOCK + 1), ..EngineOptions::default() };
    assert_eq!(size(&bytes, Some(0)).blocks, 10);
    let context = EngineOptions { context: Some(64), max_batch: 1, ..EngineOptions::default() };
    assert_eq!((size(&context, None).blocks, size(&context, None).context), (2, 64));
}

#[test]
fn sizes_beyond_all_memory_do_not_overflow() {
    let options = EngineOptions { block_size: 1, ..EngineOptions::default() };
    let sizing = options.size_kv(usize::MAX, usize::MAX, None).unwrap_err().to_string();
    assert!(sizing.contains("do not hold one block"), "{sizing}");
    let tokens = EngineOptions { kv_tokens: Some(usize::MAX), ..EngineOptions::default() };
    let sizing = tokens.size_kv(usize::MAX, usize::MAX, None).unwrap();
    assert_eq!(sizing.bytes(), usize::MAX);
    assert!(sizing.to_string().contains("a full context of"), "{sizing}");
}

#[test]
fn nonsense_is_refused() {
    let refuse = |options: EngineOptions| options.size_kv(4096, BLOCK, Some(1 << 30)).unwrap_err().to_string();
    let d = EngineOptions::default;
    assert!(refuse(EngineOptions { block_size: 24, ..d() }).contains("power of two"));
    assert!(refuse(EngineOptions { max_batch: 0, ..d() }).contains("max_batch"));
    assert!(refuse(EngineOptions { prefill_chunk: Some(0), ..d() }).contains("prefill_chunk"));
    assert!(refuse(EngineOptions { context: Some(5000), ..d() }).contains("1 to 4096 tokens, found 5000"));
    assert!(refuse(EngineOptions { kv_memory: Some(999), ..d() }).contains("999 bytes"));
}
