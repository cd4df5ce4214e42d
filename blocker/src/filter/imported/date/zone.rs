//! Time zones as log dates and `logtimezone` write them: an offset, an abbreviation, or both.
#![forbid(unsafe_code)]

/// Minutes ahead of UTC for the abbreviations that fail2ban knows. Where two zones share one, this is the one it takes.
const ABBREVIATIONS: &[(i32, &str)] = &[
    (-720, "Y"),
    (-660, "X NUT SST"),
    (-600, "W CKT HAST HST TAHT TKT"),
    (-570, "MART MIT"),
    (-540, "V AKST GAMT GIT HADT HNY"),
    (-480, "U AKDT CIST HAY HNP PST PT"),
    (-420, "T HAP HNR MST PDT"),
    (-360, "S CST EAST GALT HAR HNC MDT"),
    (-300, "R CDT COT EASST ECT EST ET HAC HNE PET"),
    (-270, "HLV VET"),
    (-240, "Q AST BOT CLT COST EDT FKT GYT HAE HNA PYT"),
    (-210, "HNT NST NT"),
    (-180, "P ADT ART BRT CLST FKST GFT HAA PMST PYST SRT UYT WGT"),
    (-150, "HAT NDT"),
    (-120, "O BRST FNT PMDT UYST WGST"),
    (-60, "N AZOT CVT EGT"),
    (0, "Z EGST GMT UTC WET WT"),
    (60, "A CET DFT WAT WEDT WEST"),
    (120, "B CAT CEDT CEST EET SAST WAST"),
    (180, "C EAT EEDT EEST IDT MSK"),
    (210, "IRST"),
    (240, "D AMT AZT GET GST KUYT MSD MUT RET SAMT SCT"),
    (270, "AFT IRDT"),
    (300, "E AMST AQTT AZST HMT MAWT MVT PKT TFT TJT TMT UZT YEKT"),
    (330, "SLT"),
    (345, "NPT"),
    (360, "F ALMT BIOT BTT IOT KGT NOVT OMST YEKST"),
    (390, "CCT MMT"),
    (420, "G CXT DAVT HOVT ICT KRAT NOVST OMSST THA WIB"),
    (480, "H ACT AWST BDT BNT CAST HKT IRKT KRAST MYT PHT SGT ULAT WITA WST"),
    (540, "I AWDT IRKST JST KST PWT TLT WDT WIT YAKT"),
    (570, "ACST"),
    (600, "K AEST ChST PGT VLAT YAKST YAPT"),
    (630, "ACDT LHST"),
    (660, "L AEDT LHDT MAGT NCT PONT SBT VLAST VUT"),
    (690, "NFT"),
    (720, "M ANAST ANAT FJT GILT MAGST MHT NZST PETST PETT TVT WFT"),
    (780, "FJST NZDT"),
];

/// Seconds ahead of UTC of a zone such as `UTC`, `CEST`, `+0200`, `+02:00`, `+02` or `GMT-0400`.
pub(in crate::filter) fn offset_secs(text: &str) -> Option<i32> {
    let sign_at = text.find(['+', '-']).unwrap_or(text.len());
    let (name, offset) = text.split_at(sign_at);
    let named = match name {
        "" => 0,
        name => ABBREVIATIONS.iter().find(|(_, names)| names.split(' ').any(|known| known == name))?.0,
    };
    if offset.is_empty() {
        return (!name.is_empty()).then_some(named * 60);
    }
    let sign = if offset.starts_with('-') { -1 } else { 1 };
    let digits: String = offset[1..].chars().filter(|c| *c != ':').collect();
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && matches!(digits.len(), 2 | 4);
    if !plain || digits.starts_with(|c| c > '1') {
        return None;
    }
    let hours: i32 = digits[..2].parse().ok()?;
    let minutes: i32 = if digits.len() == 4 { digits[2..].parse().ok()? } else { 0 };
    Some((named + sign * (hours * 60 + minutes)) * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_offsets() {
        for (text, hours) in [
            ("Z", Some(0.0)),
            ("UTC", Some(0.0)),
            ("CEST", Some(2.0)),
            ("PDT", Some(-7.0)),
            ("+0200", Some(2.0)),
            ("-09:30", Some(-9.5)),
            ("+02", Some(2.0)),
            ("CET+0100", Some(2.0)),
            ("", None),
            ("error", None),
            ("+9900", None),
            ("+1", None),
        ] {
            assert_eq!(offset_secs(text).map(|secs| f64::from(secs) / 3600.0), hours, "{text}");
        }
    }
}
