//! What can a guacd do besides the least, what does that need, and how does one see that it was built in?

use std::path::Path;

use crate::host::tools::{Finding, Kind, Need};

/// Something that upstream's configure leaves out, without a word, if a library is missing.
#[derive(Debug, PartialEq)]
pub struct Feature {
    /// Its name, as `--require` takes it.
    pub name: &'static str,
    /// What it is called in text.
    pub title: &'static str,
    /// The libraries that it takes, by their names in `tools`.
    libraries: &'static [&'static str],
    /// The program that guacd runs for it.
    program: Option<&'static str>,
    /// The name of upstream's condition for it, in `config.log`.
    condition: Option<&'static str>,
    /// The file in a prefix that shows that it was built.
    file: Option<&'static str>,
}

const fn protocol(
    name: &'static str,
    title: &'static str,
    libraries: &'static [&'static str],
    condition: &'static str,
    plugin: &'static str,
) -> Feature {
    Feature { name, title, libraries, program: None, condition: Some(condition), file: Some(plugin) }
}

/// Every feature. The protocols come first.
pub const FEATURES: &[Feature] = &[
    protocol("ssh", "SSH", &["libssh2", "openssl", "pango"], "SSH", "lib/libguac-client-ssh.so"),
    protocol("telnet", "telnet", &["libtelnet", "pango"], "TELNET", "lib/libguac-client-telnet.so"),
    protocol(
        "kubernetes",
        "Kubernetes",
        &["libwebsockets", "openssl", "pango"],
        "KUBERNETES",
        "lib/libguac-client-kubernetes.so",
    ),
    protocol("vnc", "VNC", &["libvncclient"], "VNC", "lib/libguac-client-vnc.so"),
    protocol("rdp", "RDP", &["freerdp"], "RDP", "lib/libguac-client-rdp.so"),
    Feature {
        name: "webp",
        title: "WebP images",
        libraries: &["libwebp"],
        program: None,
        condition: Some("WEBP"),
        file: None,
    },
    Feature {
        name: "vnc-sound",
        title: "sound over VNC",
        libraries: &["libvncclient", "libpulse"],
        program: None,
        condition: Some("PULSE"),
        file: Some("lib/libguac-client-vnc.so"),
    },
    Feature {
        name: "print",
        title: "printing over RDP",
        libraries: &["freerdp"],
        program: Some("gs"),
        condition: Some("RDP"),
        file: Some("lib/libguac-client-rdp.so"),
    },
    Feature {
        name: "guacenc",
        title: "guacenc",
        libraries: &["libavcodec", "libavformat", "libavutil", "libswscale"],
        program: None,
        condition: Some("GUACENC"),
        file: Some("bin/guacenc"),
    },
];

impl Feature {
    /// The feature with a name.
    pub fn named(name: &str) -> Option<&'static Feature> {
        FEATURES.iter().find(|feature| feature.name == name)
    }

    /// Whether it is a protocol.
    pub fn is_protocol(&self) -> bool {
        self.file.is_some_and(|file| file == format!("lib/libguac-client-{}.so", self.name))
    }

    /// Whether it takes an item.
    pub fn takes(&self, finding: &Finding) -> bool {
        match finding.kind {
            Kind::Library => self.libraries.contains(&finding.name),
            Kind::Program => self.program == Some(finding.name),
        }
    }

    /// The names of what it takes and the machine lacks.
    pub fn lacks(&self, findings: &[Finding]) -> Vec<&'static str> {
        let lacks = |finding: &&Finding| finding.version.is_none() && self.takes(finding);
        findings.iter().filter(lacks).map(|finding| finding.name).collect()
    }

    /// Whether configure has found all that it takes, by its `config.log`.
    pub fn is_configured(&self, config_log: &str) -> bool {
        self.condition.is_none_or(|name| {
            let line = format!("ENABLE_{name}_TRUE=''");
            config_log.lines().any(|found| found == line)
        })
    }

    /// Whether a prefix has it.
    pub fn is_in(&self, prefix: &Path) -> bool {
        self.file.is_none_or(|file| prefix.join(file).exists())
    }
}

/// The needs of features that `--install` leaves out unless they are required.
pub fn needs(features: &[&Feature]) -> Vec<Need> {
    let extra = |name, need| features.iter().any(|feature| feature.name == name).then_some(need);
    [extra("guacenc", Need::Video), extra("print", Need::Print)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tools;

    #[test]
    fn a_feature_takes_only_what_is_looked_for() {
        for feature in FEATURES {
            for (kind, names) in [
                (Kind::Library, feature.libraries.to_vec()),
                (Kind::Program, feature.program.into_iter().collect()),
            ] {
                for name in names {
                    assert!(tools::items().any(|item| (item.0, item.1) == (kind, name)), "{name}");
                }
            }
            assert_eq!(Feature::named(feature.name), Some(feature));
        }
        let protocols: Vec<_> = FEATURES.iter().filter(|one| one.is_protocol()).map(|one| one.name).collect();
        assert_eq!(protocols, ["ssh", "telnet", "kubernetes", "vnc", "rdp"]);
    }

    #[test]
    fn configures_log_and_the_prefix_say_what_is_there() {
        let rdp = Feature::named("rdp").unwrap();
        let with = "ENABLE_RDP_FALSE='#'\nENABLE_RDP_TRUE=''\n";
        let without = "ENABLE_RDP_FALSE=''\nENABLE_RDP_TRUE='#'\nENABLE_VNC_TRUE=''\n";
        assert!(rdp.is_configured(with) && !rdp.is_configured(without) && !rdp.is_configured(""));
        let prefix = tempfile::TempDir::new().unwrap();
        assert!(!rdp.is_in(prefix.path()));
        fs_err::create_dir(prefix.path().join("lib")).unwrap();
        fs_err::write(prefix.path().join("lib/libguac-client-rdp.so"), "").unwrap();
        assert!(rdp.is_in(prefix.path()));
    }

    #[test]
    fn a_feature_lacks_each_of_what_it_takes() {
        let mut findings = tools::probe_for(|need| need == Need::Ssh);
        for finding in &mut findings {
            finding.version = (finding.name != "pango").then(|| "1".to_owned());
        }
        assert_eq!(Feature::named("ssh").unwrap().lacks(&findings), ["pango"]);
        assert!(Feature::named("vnc").unwrap().lacks(&findings).is_empty());
    }
}
