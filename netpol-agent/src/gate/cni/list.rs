//! Edits the text of a CNI network configuration list.

use std::ops::Range;

use netpol_cni::PLUGIN;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// A network configuration list: a file `*.conflist`. Source: the CNI specification, "Configuration format", and
/// `ConfListFromBytes` of libcni.
#[derive(Debug)]
pub(super) struct ConfigList<'a> {
    text: &'a str,
    versions: Vec<String>,
    /// In the order of the list.
    plugins: Vec<Plugin>,
}

/// An entry of a list: the configuration of one plugin.
#[derive(Debug)]
struct Plugin {
    /// The field `type`.
    kind: String,
    /// Position of the entry in the text.
    span: Range<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawList<'a> {
    #[serde(rename = "name")]
    _name: String,
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(borrow)]
    plugins: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct PluginType {
    #[serde(rename = "type")]
    kind: String,
}

/// Checks the configuration of a single plugin: a file `*.conf` or `*.json`.
pub(super) fn check_single(text: &str) -> Result<(), String> {
    serde_json::from_str::<PluginType>(text).map(|_| ()).map_err(|error| error.to_string())
}

impl<'a> ConfigList<'a> {
    /// Parses a list.
    ///
    /// # Errors
    /// If a container runtime would not load the list.
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        let list: RawList = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let plugin = |raw: &&RawValue| {
            let PluginType { kind } =
                serde_json::from_str(raw.get()).map_err(|error| format!("in a plugin: {error}"))?;
            // The raw value is a part of the text.
            let start = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            Ok(Plugin { kind, span: start..start + raw.get().len() })
        };
        let plugins: Vec<_> = list.plugins.iter().map(plugin).collect::<Result<_, String>>()?;
        if plugins.is_empty() {
            return Err("no plugins".to_owned());
        }
        let versions = [list.cni_version].into_iter().chain(list.cni_versions).collect();
        Ok(Self { text, versions, plugins })
    }

    /// Returns all versions of the CNI specification that a runtime may choose for this list.
    pub(super) fn versions(&self) -> impl Iterator<Item = &str> {
        self.versions.iter().map(String::as_str)
    }

    /// Returns the text with this entry for `netpol-cni`, or `None` if no change is needed. A new entry is appended. An
    /// existing entry after another plugin is not moved to the end of the list. If the agent moved it, and another
    /// program moved its own plugin to the end, too, both would rewrite the file forever.
    pub(super) fn with_entry(&self, entry: &str) -> Option<String> {
        let own = self.own_indexes();
        match own[..] {
            // Index 0 is excluded: a runtime passes no `prevResult` to the first plugin of a list, so this entry must
            // move (see below).
            [index] if index > 0 => {
                let span = &self.plugins[index].span;
                let is_same = parse(&self.text[span.clone()]) == parse(entry);
                (!is_same).then(|| replaced(self.text, span.clone(), entry))
            }
            [] => Some(self.appended(entry)),
            // There are several entries, or the only entry is at index 0. Removes the last of them, and repeats.
            _ => {
                let last = *own.last()?;
                // A list that has only netpol's entries is left unchanged. It is edited when another plugin is added.
                if own.len() == self.plugins.len() {
                    return None;
                }
                let rest = self.without(last);
                // The recursion ends with exactly one entry, after another plugin.
                let list = ConfigList::parse(&rest).ok()?;
                Some(list.with_entry(entry).unwrap_or(rest))
            }
        }
    }

    /// Returns the text without entries for `netpol-cni`, or `None` if it has no such entry.
    ///
    /// # Errors
    /// If the list has no other plugin.
    pub(super) fn without_entry(&self) -> Result<Option<String>, String> {
        let own = self.own_indexes();
        if own.len() == self.plugins.len() {
            return Err("the list has no other plugin".to_owned());
        }
        let Some(last) = own.last() else { return Ok(None) };
        let rest = self.without(*last);
        let further = ConfigList::parse(&rest)?.without_entry()?;
        Ok(Some(further.unwrap_or(rest)))
    }

    /// Returns the indexes of the entries for `netpol-cni`.
    fn own_indexes(&self) -> Vec<usize> {
        (0..self.plugins.len()).filter(|index| self.plugins[*index].kind == PLUGIN).collect()
    }

    /// Returns the text with an entry added at the end. The white space before the entry is copied from the entry that
    /// was last.
    fn appended(&self, entry: &str) -> String {
        let last = &self.plugins[self.plugins.len() - 1].span;
        let before = &self.text[..last.start];
        let space = &before[before.trim_end_matches([' ', '\t', '\r', '\n']).len()..];
        replaced(self.text, last.end..last.end, &format!(",{space}{entry}"))
    }

    /// Returns the text without one entry, and without the comma next to this entry.
    fn without(&self, index: usize) -> String {
        let span = |index: usize| &self.plugins[index].span;
        let range = match index.checked_sub(1) {
            Some(previous) => span(previous).end..span(index).end,
            None => span(0).start..self.plugins.get(1).map_or(span(0).end, |next| next.span.start),
        };
        replaced(self.text, range, "")
    }
}

fn replaced(text: &str, range: Range<usize>, new: &str) -> String {
    let mut text = text.to_owned();
    text.replace_range(range, new);
    text
}

fn parse(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entry that lists must contain.
    const ENTRY: &str = r#"{"type":"netpol-cni","socket":"/run/netpol/agent.sock"}"#;
    /// An entry for the same plugin with another setting.
    const OTHER: &str = r#"{"socket":"/run/netpol/other.sock", "type":"netpol-cni"}"#;
    /// A list as Flannel writes it.
    const FLANNEL: &str = "{
  \"name\": \"cbr0\",
  \"cniVersion\": \"0.3.1\",
  \"plugins\": [
    {
      \"type\": \"flannel\",
      \"delegate\": {
        \"hairpinMode\": true
      }
    },
    {
      \"type\": \"portmap\"
    }
  ]
}
";

    fn with_entry(text: &str) -> Option<String> {
        ConfigList::parse(text).unwrap().with_entry(ENTRY)
    }

    fn without_entry(text: &str) -> Option<String> {
        ConfigList::parse(text).unwrap().without_entry().unwrap()
    }

    fn kinds(text: &str) -> Vec<String> {
        ConfigList::parse(text).unwrap().plugins.into_iter().map(|plugin| plugin.kind).collect()
    }

    #[test]
    fn adding_and_removing_an_entry_restores_the_text() {
        for text in [
            FLANNEL,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#,
            r#"{"plugins" : [ {"type":"bridge"} , {"type":"\u0070ortmap","a":"]},{\"type\":"}	] , "name":"ü" }"#,
            "\r\n{\"name\":\"n\",\"plugins\":[\r\n\t{\"type\":\"ptp\"}\r\n]}\r\n",
        ] {
            let new = with_entry(text).unwrap();
            assert_eq!(kinds(&new), [kinds(text), vec![PLUGIN.to_owned()]].concat());
            assert_eq!(with_entry(&new), None, "the entry is there already");
            assert_eq!(without_entry(&new).as_deref(), Some(text));
            assert_eq!(without_entry(text), None);
        }
        let expected = FLANNEL.replace("    }\n  ]", &format!("    }},\n    {ENTRY}\n  ]"));
        assert_eq!(with_entry(FLANNEL).unwrap(), expected);
    }

    #[test]
    fn an_entry_with_other_settings_is_replaced_in_place() {
        let list = |entry| format!(r#"{{"name":"n","plugins":[{{"type":"ptp"}},{entry},{{"type":"tuning"}}]}}"#);
        assert_eq!(with_entry(&list(OTHER)), Some(list(ENTRY)));
        let reordered = r#"{ "socket" : "/run/netpol/agent.sock" , "type" : "netpol-cni" }"#;
        assert_eq!(with_entry(&list(reordered)), None, "the same settings");
        let expected = r#"{"name":"n","plugins":[{"type":"ptp"},{"type":"tuning"}]}"#;
        assert_eq!(without_entry(&list(OTHER)).as_deref(), Some(expected));
    }

    #[test]
    fn several_entries_become_one_and_an_entry_at_the_start_moves() {
        let list = |plugins: &str| format!(r#"{{"name":"n","plugins":[{plugins}]}}"#);
        let ptp = r#"{"type":"ptp"}"#;
        let expected = Some(list(&format!("{ptp},{ENTRY}")));
        for plugins in [
            format!("{ENTRY},{ptp}"),
            format!("{OTHER},{ENTRY},{ptp}"),
            format!("{ptp},{ENTRY},{OTHER}"),
            format!("{OTHER},{ptp},{ENTRY},{OTHER}"),
            format!("{ptp},{OTHER},{OTHER}"),
        ] {
            assert_eq!(with_entry(&list(&plugins)), expected, "{plugins}");
            assert_eq!(without_entry(&list(&plugins)), Some(list(ptp)), "{plugins}");
        }
        let only = list(ENTRY);
        assert!(ConfigList::parse(&only).unwrap().without_entry().is_err());
        assert_eq!(with_entry(&only), None);
    }

    #[test]
    fn lists_that_runtimes_do_not_load_are_refused() {
        for invalid in [
            "",
            "{",
            "[]",
            r#"{"plugins":[{"type":"ptp"}]}"#,
            r#"{"name":5,"plugins":[{"type":"ptp"}]}"#,
            r#"{"name":"n"}"#,
            r#"{"name":"n","type":"ptp"}"#,
            r#"{"name":"n","plugins":[]}"#,
            r#"{"name":"n","plugins":[{}]}"#,
            r#"{"name":"n","plugins":[{"type":5}]}"#,
            r#"{"name":"n","plugins":["ptp"]}"#,
            r#"{"name":"n","plugins":[{"type":"ptp"}]} {}"#,
            r#"{"name":"n","cniVersion":1,"plugins":[{"type":"ptp"}]}"#,
            r#"{"name":"n","plugins":[{"type":"ptp"}],"plugins":[{"type":"bridge"}]}"#,
        ] {
            assert!(ConfigList::parse(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn all_versions_are_read() {
        let text = r#"{"name":"n","cniVersion":"1.0.0","cniVersions":["1.1.0","9.0.0"],"plugins":[{"type":"ptp"}]}"#;
        assert!(ConfigList::parse(text).unwrap().versions().eq(["1.0.0", "1.1.0", "9.0.0"]));
        assert!(ConfigList::parse(FLANNEL).unwrap().versions().eq(["0.3.1"]));
        let none = r#"{"name":"n","plugins":[{"type":"ptp"}]}"#;
        assert!(ConfigList::parse(none).unwrap().versions().eq([""]));
    }
}
