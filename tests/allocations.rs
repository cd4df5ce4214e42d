//! A line that does not match costs no allocation: not one that no pattern speaks for, nor one that nearly matches.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    path::Path,
    sync::Arc,
};

use blocker::{
    config::{BUILT_IN, read_filter},
    filter::{Clock, Filter, SourceMatcher},
    time::Timestamp,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; only a number is kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`, and `alloc` above got the pointer from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps to the contract of `realloc`, and `alloc` above got the pointer from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_line_that_does_not_match_allocates_nothing() {
    let filters: Vec<Arc<Filter>> = BUILT_IN
        .iter()
        .map(|(name, text)| {
            let spec = read_filter(text, Path::new(name)).unwrap_or_else(|e| panic!("{e:?}"));
            Arc::new(Filter::compile(spec).unwrap_or_else(|e| panic!("{e}")))
        })
        .collect();
    let mut matcher = SourceMatcher::new(filters.clone());
    let clock = Clock { now: Timestamp::from_secs(1_795_525_200), utc_offset_secs: 0 };
    let verdicts = |matcher: &mut SourceMatcher, line: &str| {
        let mut found = 0;
        matcher.scan(line.as_bytes(), clock, |line| {
            found += (0..filters.len()).filter(|filter| line.verdict(*filter).is_some()).count();
        });
        found
    };
    let mut lines: Vec<String> =
        ["Nov 24 02:47:40 host CRON[7]: session closed for user root", "", "x"].map(str::to_owned).to_vec();
    for filter in &filters {
        for sample in &filter.samples {
            lines.push(sample.line.clone());
            // Cut short, it nearly matches.
            let end = (0..=sample.line.len() * 3 / 4).rev().find(|at| sample.line.is_char_boundary(*at));
            lines.push(sample.line[..end.unwrap_or(0)].to_owned());
        }
    }
    // What matches but for an address out of range is found out by captures, which are allocated.
    lines.retain(|line| !line.contains("999."));
    // The first look at a line may build what all later ones use.
    lines.retain(|line| (0..3).all(|_| verdicts(&mut matcher, line) == 0));
    assert!(lines.len() > 300, "{} lines that do not match", lines.len());
    let mut costly = Vec::new();
    for line in &lines {
        let before = ALLOCATIONS.get();
        let found = verdicts(&mut matcher, line);
        if (found, ALLOCATIONS.get() - before) != (0, 0) {
            costly.push((line, ALLOCATIONS.get() - before));
        }
    }
    assert_eq!(costly, []);
    let text = "field = 'request.msg'\nfailregex = ['^bad password: <ADDR>$']\n";
    let spec = read_filter(text, Path::new("json.toml")).unwrap_or_else(|e| panic!("{e:?}"));
    let filter = Filter::compile(spec).unwrap_or_else(|e| panic!("{e}"));
    let mut matcher = SourceMatcher::new(vec![Arc::new(filter)]);
    for line in [
        r#"{"msg":"welcome"}"#,
        r#"{"request":{"user":[1,{}],"m\u0073g":"\u0062ad passwort"},"x":"bad password: "}"#,
        r#"{"request":"bad password: "}"#,
        r#"{"request":{"msg":"bad password: nobody"}} "#,
        r#"{"request":{"msg":"bad password: "}"#,
    ] {
        let look = |matcher: &mut SourceMatcher| {
            let mut found = false;
            matcher.scan(line.as_bytes(), clock, |line| found |= line.verdict(0).is_some());
            found
        };
        // Its memory is kept from the first line on.
        assert!(!look(&mut matcher), "{line}");
        let before = ALLOCATIONS.get();
        assert!(!look(&mut matcher));
        assert_eq!(ALLOCATIONS.get() - before, 0, "{line}");
    }
    // The count counts.
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![0_u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
