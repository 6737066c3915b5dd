//! Which Linux distribution is this? What `/etc/os-release` says.

use fs_err as fs;

/// A distribution, by the fields of os-release(5). A field that the file lacks is empty.
#[derive(Debug, Default, PartialEq)]
pub struct Distribution {
    /// `ID`, such as `debian`.
    pub id: String,
    /// `ID_LIKE`: the distributions that this one derives from, separated by blanks.
    pub id_like: String,
    /// `VERSION_ID`, such as `12`.
    pub version: String,
    /// `VERSION_CODENAME`, such as `bookworm`.
    pub codename: String,
}

impl Distribution {
    /// The distribution that this runs on.
    pub fn this() -> Distribution {
        Distribution::parse(&fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    fn parse(text: &str) -> Distribution {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        Distribution {
            id: field("ID"),
            id_like: field("ID_LIKE"),
            version: field("VERSION_ID"),
            codename: field("VERSION_CODENAME"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_with_quotes_and_without() {
        let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        let debian = Distribution::parse(debian);
        assert_eq!((&*debian.id, &*debian.version, &*debian.codename), ("debian", "12", "bookworm"));
        let mint = Distribution::parse("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n");
        assert_eq!((&*mint.id_like, &*mint.version), ("ubuntu debian", ""));
        assert_eq!(Distribution::parse(""), Distribution::default());
    }
}
