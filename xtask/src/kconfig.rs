//! Comparing the kernel configuration we want with the one that came of it.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};

/// What a line of a configuration says: `None` is off.
type Value<'a> = Option<&'a str>;

/// The lines of `wanted` that `config` does not have as they were asked for.
pub(crate) fn lost(wanted: &str, config: &str) -> Result<Vec<String>> {
    let got: HashMap<&str, Value<'_>> =
        config.lines().filter_map(|line| parse(line).transpose()).collect::<Result<_>>()?;
    let mut seen = HashMap::new();
    let mut lost = Vec::new();
    for line in wanted.lines() {
        let Some((name, value)) = parse(line)? else { continue };
        if let Some(before) = seen.insert(name, value) {
            bail!("{name} is set twice in the wanted configuration ({before:?}, {value:?})");
        }
        let now = got.get(name).copied().flatten();
        if now != value {
            lost.push(format!("{line}   (is: {})", now.unwrap_or("off")));
        }
    }
    Ok(lost)
}

fn parse(line: &str) -> Result<Option<(&str, Value<'_>)>> {
    let line = line.trim();
    if let Some(name) = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set")) {
        return Ok(Some((name, None)));
    }
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, value) =
        line.split_once('=').with_context(|| format!("not a line of a kernel configuration: '{line}'"))?;
    Ok(Some((name, Some(value).filter(|value| *value != "n"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x y\"\nCONFIG_D=64\n";

    #[test]
    fn what_was_taken_is_not_lost() {
        let wanted = "# a comment\nCONFIG_A=y\nCONFIG_C=\"x y\"\nCONFIG_D=64\n# CONFIG_B is not set\n";
        assert!(lost(wanted, CONFIG).unwrap().is_empty());
        assert!(lost("CONFIG_B=n\n# CONFIG_NEVER_HEARD_OF is not set\n", CONFIG).unwrap().is_empty());
    }

    #[test]
    fn what_was_not_taken_is_named_with_what_it_is() {
        let wanted = "CONFIG_B=y\nCONFIG_E=y\nCONFIG_D=8\n# CONFIG_A is not set\n";
        assert_eq!(
            lost(wanted, CONFIG).unwrap(),
            [
                "CONFIG_B=y   (is: off)",
                "CONFIG_E=y   (is: off)",
                "CONFIG_D=8   (is: 64)",
                "# CONFIG_A is not set   (is: y)"
            ]
        );
    }

    #[test]
    fn contradictions_and_rubbish_are_errors() {
        assert!(lost("CONFIG_A=y\nCONFIG_A=n\n", CONFIG).is_err());
        assert!(lost("rubbish\n", CONFIG).is_err());
    }
}
