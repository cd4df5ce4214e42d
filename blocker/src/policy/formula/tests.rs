use super::*;

const KNOWN: Known = Known { time: 600.0, count: 3.0, factor: 2.0 };

#[test]
fn arithmetic_comes_to_what_python_makes_of_it() {
    for (text, value) in [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("2 ** 3 ** 2", 512.0),
        ("-2 ** 2", -4.0),
        ("2 ** -1", 0.5),
        ("7 // 2", 3.0),
        ("-7 // 2", -4.0),
        ("-7 % 3", 2.0),
        ("7 % -3", -2.0),
        ("1e3 + .5 + 1_000", 2000.5),
        ("1 << 4 + 1", 32.0),
        ("-9 >> 1", -5.0),
        ("1 < 2 < 3", 1.0),
        ("3 > 2 > 2", 0.0),
        ("not 0 and 5", 5.0),
        ("0 or 7", 7.0),
        ("1 if 0 else 2 if 0 else 3", 3.0),
        ("10 if ban.Count >= 3 else 1 / 0", 10.0),
        ("min(4, ban.Count, 9) + max(1, 2)", 5.0),
        ("int(-2.7) + abs(-3) + float(1)", 2.0),
        ("round(2.5) + round(3.5)", 6.0),
        ("math.pow(2, 10) + pow(2, 3)", 1032.0),
        ("math.log(8, 2) + math.sqrt(16) + math.floor(1.9) + math.ceil(1.1)", 10.0),
        ("ban.Time * banFactor", 1200.0),
        (FORMULA_DEFAULT, 9600.0),
    ] {
        assert_eq!(Formula::parse(text).map(|formula| formula.evaluate(KNOWN)), Ok(Some(value)), "{text}");
    }
}

#[test]
fn what_python_raises_comes_to_nothing() {
    for text in [
        "1 / 0",
        "1 // 0",
        "1 % 0",
        "0 ** -1",
        "(-8) ** 0.5",
        "1 << -1",
        "1 << 0.5",
        "1 << 5000",
        "math.log(0)",
        "math.sqrt(-1)",
        "math.exp(1000)",
        "10 ** 400",
        "1e400",
    ] {
        assert_eq!(Formula::parse(text).map(|formula| formula.evaluate(KNOWN)), Ok(None), "{text}");
    }
}

#[test]
fn what_is_no_arithmetic_is_refused_with_its_place() {
    let deep = format!("{}1{}", "(".repeat(40), ")".repeat(40));
    let signs = "-".repeat(900) + "1";
    for (text, offset, says) in [
        ("", 0, "missing before the end"),
        ("1 +", 3, "missing before the end"),
        ("1 2", 2, "cannot stand here"),
        ("(1", 2, "`)` is missing"),
        ("1 if 2", 6, "`else` is missing"),
        ("__import__('os')", 11, "means nothing"),
        ("ban.__class__", 0, "nothing is called"),
        ("open", 0, "nothing is called"),
        ("random.random()", 0, "nothing is called"),
        ("[1]", 0, "means nothing"),
        ("1 = 2", 2, "cannot stand here"),
        ("abs(1, 2)", 8, "takes 1 to 1 arguments"),
        ("math.exp", 8, "`(` is missing"),
        ("1.2.3", 3, "cannot stand here"),
        (".", 0, "no number"),
        ("é", 0, "means nothing"),
        (&deep, FORMULA_DEPTH_MAX, "nests deeper"),
        (&signs, FORMULA_DEPTH_MAX, "nests deeper"),
    ] {
        let error = Formula::parse(text).expect_err(text);
        assert!(error.what.contains(says), "{text}: {error}");
        assert_eq!(error.offset, offset, "{text}: {error}");
    }
    assert!(Formula::parse(&"1+".repeat(600)).is_err());
}

#[test]
fn the_default_is_what_its_text_says() {
    assert_eq!(Formula::parse(FORMULA_DEFAULT), Ok(Formula::doubling()));
}

#[test]
fn a_factor_is_a_number_by_itself() {
    assert_eq!(Formula::constant("2.0 / 2.5"), Ok(0.8));
    assert!(Formula::constant("ban.Time").is_err());
    assert!(Formula::constant("1 / 0").is_err());
}
