//! Groups of sandboxes of a network over several hosts.
//!
//! Each has a number, and with it the same part of every subnet on all nodes ([`Declaration::group_ranges`]). A name and
//! its number stay together for good: what a node knows by an earlier revision is then never wrong about who is in a group,
//! only about which groups there are.

use super::declaration::{Declaration, Group};
use super::{DeclarationError, wrong};
use crate::policy::GroupName;

/// How many groups a network gets room for if it is declared with some: seven, or what more takes.
pub fn default_max_groups(declared: usize) -> u16 {
    let needed = declared.max(7).checked_add(1).and_then(usize::checked_next_power_of_two);
    needed.and_then(|n| u16::try_from(n - 1).ok()).unwrap_or(u16::MAX)
}

impl Declaration {
    /// Every group that is declared, or was.
    fn known_groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().chain(&self.retired_groups)
    }

    /// Checks names and numbers.
    pub(super) fn check_groups(&self) -> Result<(), DeclarationError> {
        let lists = [("groups", &self.groups), ("retiredGroups", &self.retired_groups)];
        let mut seen: Vec<&Group> = Vec::new();
        for (list, n, group) in lists
            .iter()
            .flat_map(|(list, all)| all.iter().enumerate().map(move |(n, group)| (list, n, group)))
        {
            if !(1..=self.max_groups).contains(&group.id) {
                let why = format!("{} is not between 1 and maxGroups, {}", group.id, self.max_groups);
                return Err(wrong(format!("{list}[{n}].id"), why));
            }
            for other in &seen {
                if other.id == group.id {
                    let why = format!("{} is or was group `{}`'s", group.id, other.name.as_str());
                    return Err(wrong(format!("{list}[{n}].id"), why));
                }
                if other.name == group.name {
                    let why = format!("`{}` is there twice", group.name.as_str());
                    return Err(wrong(format!("{list}[{n}].name"), why));
                }
            }
            seen.push(group);
        }
        Ok(())
    }

    /// Adds a group, which gets a number that was never used, or the one it had before.
    pub fn add_group(&mut self, name: &GroupName) -> Result<(), DeclarationError> {
        if self.groups.iter().any(|group| group.name == *name) {
            return Err(wrong("groups", format!("`{}` is one of them already", name.as_str())));
        }
        let group = match self.retired_groups.iter().position(|group| group.name == *name) {
            Some(before) => self.retired_groups.remove(before),
            None => Group { name: name.clone(), id: self.next_group()? },
        };
        self.groups.push(group);
        Ok(())
    }

    fn next_group(&self) -> Result<u16, DeclarationError> {
        let free = |id: &u16| self.known_groups().all(|group| group.id != *id);
        (1..=self.max_groups).find(free).ok_or_else(|| {
            let why = match self.max_groups {
                0 => "is 0: the network was declared without room for groups (skep net create --max-groups)"
                    .to_owned(),
                max => format!("all {max} numbers are, or were, some group's"),
            };
            wrong("maxGroups", why)
        })
    }

    /// Removes a group; its number is kept for it.
    pub fn remove_group(&mut self, name: &GroupName) -> Result<(), DeclarationError> {
        let at = self
            .groups
            .iter()
            .position(|group| group.name == *name)
            .ok_or_else(|| wrong("groups", format!("`{}` is none of them", name.as_str())))?;
        let group = self.groups.remove(at);
        self.retired_groups.push(group);
        Ok(())
    }

    /// Whether no group has become another in a later revision.
    pub(super) fn keeps_groups_of(&self, earlier: &Self) -> Result<(), DeclarationError> {
        if self.max_groups != earlier.max_groups {
            return Err(wrong("maxGroups", "cannot change while the network has sandboxes"));
        }
        for group in self.known_groups() {
            let other = |before: &&Group| (before.name == group.name) != (before.id == group.id);
            if let Some(before) = earlier.known_groups().find(other) {
                let (name, id) = (group.name.as_str(), group.id);
                let why = format!("`{name}` has {id}, but `{}` had {}", before.name.as_str(), before.id);
                return Err(wrong("groups", why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    use crate::vpc::testing;

    fn declaration(more: Value) -> Result<Declaration, DeclarationError> {
        let mut fields = json!({"maxGroups": 3});
        let Value::Object(more) = more else { panic!() };
        fields.as_object_mut().unwrap().extend(more);
        testing::declaration(fields)
    }

    fn name(text: &str) -> GroupName {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn mistakes_name_the_field() {
        let web = |id: u16| json!({"name": "web", "id": id});
        for (more, want) in [
            (json!({"groups": [web(0)]}), "groups[0].id: 0 is not between 1 and maxGroups, 3"),
            (json!({"groups": [web(4)]}), "groups[0].id: 4 is not"),
            (
                json!({"maxGroups": 0, "groups": [web(1)]}),
                "groups[0].id: 1 is not between 1 and maxGroups, 0",
            ),
            (json!({"groups": [web(1), {"name": "db", "id": 1}]}), "groups[1].id: 1 is or was group `web`'s"),
            (json!({"groups": [web(1), web(2)]}), "groups[1].name: `web` is there twice"),
            (json!({"groups": [web(1)], "retiredGroups": [{"name": "db", "id": 1}]}), "retiredGroups[0].id"),
            (json!({"groups": [{"name": "a b", "id": 1}]}), "groups[0]"),
            (json!({"maxGroups": 4096}), "maxGroups: 4096 is not"),
            (json!({"maxGroups": 2047}), "subnets[0]: 10.1.0.0/16 has no room for 2047 groups"),
            (json!({"config": {"policy": {"groups": {}}}}), "config.policy.groups: follows"),
            (
                json!({"groups": [web(1)], "config": {"policy": {"ingress": {"deny": [{"group": "db"}]}}}}),
                "config: policy: group `db` is not declared on this network (declared: web)",
            ),
            (json!({"config": {"policy": {"group": "db"}}}), "policy.group: group `db` is not declared"),
        ] {
            let error = declaration(more.clone()).unwrap_err().to_string();
            assert!(error.contains(want), "{more}: {error}");
        }
    }

    #[test]
    fn a_name_and_its_number_stay_together() {
        let mut vpc = declaration(json!({})).unwrap();
        let first = vpc.clone();
        for group in ["web", "db"] {
            vpc.add_group(&name(group)).unwrap();
        }
        assert!(vpc.add_group(&name("db")).is_err() && vpc.remove_group(&name("cache")).is_err());
        vpc.remove_group(&name("web")).unwrap();
        vpc.add_group(&name("cache")).unwrap();
        vpc.add_group(&name("web")).unwrap();
        let numbers: Vec<_> = vpc.groups.iter().map(|group| (group.name.as_str(), group.id)).collect();
        assert_eq!(numbers, [("db", 2), ("cache", 3), ("web", 1)]);
        vpc.validate().unwrap();
        vpc.remove_group(&name("web")).unwrap();
        let full = vpc.add_group(&name("more")).unwrap_err().to_string();
        assert!(full.contains("all 3 numbers"), "{full}");
        vpc.keeps_groups_of(&first).unwrap();
        let mut other = first.clone();
        other.add_group(&name("cache")).unwrap();
        let error = other.keeps_groups_of(&vpc).unwrap_err().to_string();
        assert!(error.contains("`cache` has 1, but `db`") || error.contains("but `cache` had 3"), "{error}");
        let mut room = first.clone();
        room.max_groups = 7;
        assert!(room.keeps_groups_of(&first).unwrap_err().to_string().contains("maxGroups"));
        let mut none = declaration(json!({"maxGroups": 0})).unwrap();
        assert!(none.add_group(&name("web")).unwrap_err().to_string().contains("--max-groups"));
        assert_eq!([0, 1, 7, 8].map(default_max_groups), [7, 7, 7, 15]);
    }
}
