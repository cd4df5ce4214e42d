//! What the kernel or the library says, as an error of one line.

use super::EnforceError;

pub(super) fn refused(
    what: impl Into<String>,
    cause: impl Into<String>,
    hint: impl Into<String>,
) -> EnforceError {
    EnforceError { what: what.into(), cause: cause.into(), hint: hint.into(), prefix: None }
}

/// An error with everything behind it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    one_line(&text)
}

/// The first line; of what the verifier says also its reason, which is the last line before its figures.
pub(super) fn one_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim_end);
    let first = lines.next().unwrap_or_default();
    let is_figure = |line: &&str| {
        ["verification time ", "stack depth ", "processed "].iter().any(|start| line.starts_with(start))
    };
    match lines.rfind(|line| !line.is_empty() && !is_figure(line)) {
        Some(reason) if first.contains("erifier") => {
            let what = first.split_once("output:").map_or(first, |(what, _)| what);
            format!("{what}output: {reason}")
        }
        _ => first.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line_and_says_what_the_verifier_said_last() {
        let log = "the BPF_PROG_LOAD syscall returned Invalid argument. Verifier output: 0: (bf) r6 = r1\n\
                   1: (0f) r0 += r4\nmath with an unbounded value is not allowed\nverification time 7301 usec\n\
                   stack depth 176\nprocessed 301 insns (limit 1000000)\n";
        for (text, line) in [
            (
                log,
                "the BPF_PROG_LOAD syscall returned Invalid argument. Verifier output: math with an unbounded value is \
                 not allowed",
            ),
            ("returned Invalid argument. Verifier output: ", "returned Invalid argument. Verifier output:"),
            ("no such file\nand more", "no such file"),
            ("", ""),
        ] {
            assert_eq!(one_line(text), line);
        }
    }
}
