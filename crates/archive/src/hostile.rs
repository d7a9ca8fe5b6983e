//! Layers that an honest tool never makes (class E of the field study), and the rules of honest ones.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use model::{Code, Coded as _};

use crate::{Applied, ApplyOptions, Error, Limits, apply};

/// A tar made by hand: the `tar` crate's builder is too honest.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn block(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn header(flag: u8, path: &str, link: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        old.linkflag = [flag];
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(size);
        header
    }

    fn put(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.block(data);
        self
    }

    fn entry(self, flag: u8, path: &str, link: &str, data: &[u8]) -> Self {
        let mut header = Self::header(flag, path, link, data.len() as u64);
        if flag == b'5' {
            header.set_mode(0o755);
        }
        self.put(header, data)
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.entry(b'0', path, "", data.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, b"")
    }

    fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length = (body + 1..).find(|length| body + length.to_string().len() == *length).expect("a length");
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(b'x', "pax", "", &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A root to apply to, and a directory outside of it that nothing may touch.
struct Field {
    scratch: tempfile::TempDir,
    before: Vec<String>,
}

impl Field {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(scratch.path().join("root")).expect("root");
        fs::create_dir_all(scratch.path().join("outside/dir")).expect("outside");
        fs::write(scratch.path().join("outside/secret"), "secret").expect("secret");
        fs::set_permissions(scratch.path().join("outside/secret"), fs::Permissions::from_mode(0o600)).expect("chmod");
        let mut field = Self { scratch, before: Vec::new() };
        field.before = describe(&field.outside());
        field
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("root")
    }

    fn outside(&self) -> PathBuf {
        self.scratch.path().join("outside")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn apply(&self, tar: &[u8], options: ApplyOptions) -> Result<Applied, Error> {
        let result = apply(tar, &self.root(), options);
        assert_eq!(describe(&self.outside()), self.before, "something outside changed");
        assert_eq!(fs::read_dir(self.scratch.path()).expect("list").count(), 2, "something outside was made");
        result
    }

    fn overlay(&self, tar: &[u8]) -> Result<Applied, Error> {
        self.apply(tar, ApplyOptions::upper(Vec::new()))
    }

    fn in_place(&self, tar: &[u8]) -> Result<Applied, Error> {
        self.apply(tar, ApplyOptions::in_place())
    }
}

fn describe(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let m = path.symlink_metadata().expect("metadata");
        let content = if m.is_file() { fs::read(&path).expect("read") } else { Vec::new() };
        lines.push(format!("{path:?} {:o} {} {} {:?} {content:?}", m.mode(), m.uid(), m.nlink(), m.modified().ok()));
        if m.is_dir() {
            pending.extend(fs::read_dir(&path).expect("list").map(|entry| entry.expect("entry").path()));
        }
    }
    lines.sort();
    lines
}

fn is_whiteout(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

fn attribute(path: &Path, key: &str) -> Option<Vec<u8>> {
    let mut value = [0; 256];
    rustix::fs::lgetxattr(path, key, &mut value[..]).ok().map(|length| value[..length].to_vec())
}

fn is_opaque(path: &Path) -> bool {
    attribute(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn names_stay_inside() {
    let field = Field::new();
    let tar = Tar::default()
        .file("/absolute", "1")
        .file("../../../dots", "2")
        .file("a/../../../outside/inner", "3")
        .file("./a/./b//c", "4")
        .file("..", "root is ignored")
        .dir("/")
        .end();
    field.overlay(&tar).expect("applies");
    assert_eq!(read(&field.path("absolute")), "1");
    assert_eq!(read(&field.path("dots")), "2");
    assert_eq!(read(&field.path("outside/inner")), "3");
    assert_eq!(read(&field.path("a/b/c")), "4");
}

#[test]
fn links_lead_nowhere_outside() {
    for in_place in [false, true] {
        let field = Field::new();
        let outside = field.outside();
        let outside = outside.to_str().expect("text");
        let apply = |tar: Tar| if in_place { field.in_place(&tar.end()) } else { field.overlay(&tar.end()) };

        // Written through: the absolute target is looked up inside, where it does not exist and is made.
        apply(Tar::default().symlink("abs", outside).file("abs/evil", "x")).expect("applies");
        assert_eq!(read(&field.path(&format!(".{outside}/evil"))), "x");
        apply(Tar::default().symlink("rel", "../outside").file("rel/evil", "y")).expect("applies");
        assert_eq!(read(&field.path("outside/evil")), "y");
        apply(Tar::default().symlink("up", "../../../../../..").file("up/up", "z")).expect("applies");
        assert_eq!(read(&field.path("up")), "z");

        // Replaced, not followed: contents, mode (CVE-2021-32760), owner, times.
        apply(Tar::default().symlink("file", &format!("{outside}/secret")).file("file", "mine")).expect("applies");
        assert_eq!(read(&field.path("file")), "mine");
        apply(Tar::default().symlink("dir", outside).dir("dir")).expect("applies");
        assert!(field.path("dir").symlink_metadata().expect("dir").is_dir());

        // A directory that was written into becomes a link.
        apply(Tar::default().dir("swap").file("swap/1", "1").symlink("swap", outside).file("swap/2", "2"))
            .expect("applies");
        assert_eq!(read(&field.path(&format!(".{outside}/2"))), "2");
        assert!(!field.path("swap").join("1").exists());

        // Hard links.
        for target in [format!("{outside}/secret"), "../outside/secret".to_owned()] {
            let error = apply(Tar::default().hardlink("hard", &target)).expect_err("no such file inside");
            assert!(matches!(error, Error::Entry { .. }), "{error}");
        }
        let through = Tar::default().symlink("via", outside).hardlink("hard", "via/secret");
        apply(through).expect_err("no such file inside");
        let through =
            Tar::default().symlink("via", &format!("{outside}/secret")).hardlink("hard", "via").file("hard", "!");
        apply(through).expect("a link to a link is one to the link");
        apply(Tar::default().hardlink("hard", "/")).expect_err("the root");
        apply(Tar::default().dir("d").hardlink("hard", "d")).expect_err("a directory");
        apply(Tar::default().file("self", "x").hardlink("self", "./self")).expect_err("itself");
    }
}

#[test]
fn whiteouts_stay_inside() {
    let field = Field::new();
    for name in [".wh.", ".wh..", ".wh...", "a/.wh...", ".wh.x/y"] {
        for tar in [Tar::default().file(name, ""), Tar::default().dir("a").file(name, "")] {
            let tar = tar.end();
            assert!(matches!(field.overlay(&tar), Err(Error::Refused { .. })), "{name}");
            assert!(matches!(field.in_place(&tar), Err(Error::Refused { .. })), "{name}");
        }
    }
    let outside = field.outside();
    for target in [outside.to_str().expect("text"), "../outside"] {
        let field = Field::new();
        field.in_place(&Tar::default().symlink("d", target).file("d/.wh.secret", "").end()).expect("nothing there");
        field.in_place(&Tar::default().file("d/.wh..wh..opq", "").end()).expect("nothing there");
        field.in_place(&Tar::default().file(".wh.d", "").end()).expect("the link goes");
        assert!(field.path("d").symlink_metadata().is_err());
    }
}

#[test]
fn limits_hold() {
    let field = Field::new();
    // A PAX header and a long name that claim a gigabyte.
    for flag in [b'x', b'L', b'K'] {
        let mut header = Tar::header(flag, "x", "", 1 << 30);
        header.set_cksum();
        let error = field.overlay(header.as_bytes()).expect_err("refused");
        assert!(matches!(error, Error::Limit { .. }), "{error}");
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    // Sparse files: too long, and with more than the archive has.
    let sparse = |size: &[u8], map: &[u8]| {
        Tar::default().pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)]).file("s", "abc").end()
    };
    for (size, map) in
        [(&b"9000000000000000000"[..], &b"0,3"[..]), (b"3", b"0,4"), (b"2", b"0,3"), (b"9", b"5,2,4,1"), (b"9", b"0")]
    {
        assert!(field.overlay(&sparse(size, map)).is_err(), "{size:?} {map:?}");
    }
    // Owners that would be cut to 32 bits, or to nobody.
    for id in ["4294967296", "4294967295", "-1"] {
        for key in ["uid", "gid"] {
            let tar = Tar::default().pax(&[(key, id.as_bytes())]).file("x", "").end();
            assert!(field.overlay(&tar).is_err(), "{key} {id}");
        }
    }
    let long = "d/".repeat(2100);
    assert!(field.overlay(&Tar::default().pax(&[("path", long.as_bytes())]).dir("x").end()).is_err());
    assert!(field.overlay(&Tar::default().pax(&[("path", b"a\0b")]).file("x", "").end()).is_err());
    assert!(field.overlay(&Tar::default().entry(b'V', "x", "", b"").end()).is_err());
    // Names to remember.
    let mut options = ApplyOptions::upper(Vec::new());
    options.limits = Limits { remembered_bytes: 1000, ..Limits::default() };
    let tar = (0..20).fold(Tar::default(), |tar, n| tar.dir(&format!("dir{n}"))).end();
    assert!(matches!(field.apply(&tar, options), Err(Error::Limit { .. })));
    // An archive that ends within a file.
    let whole = Tar::default().file("x", &"y".repeat(2000)).end();
    for cut in [100, 600, 1500] {
        assert!(field.overlay(&whole[..cut]).is_err());
    }
}

#[test]
fn attributes_of_the_administrator_are_not_taken() {
    let field = Field::new();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut header = Tar::header(b'0', "tool", "", 1);
    header.set_mode(0o6755);
    header.set_uid(12);
    header.set_gid(34);
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.other", b"1"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.mine", b"1"),
        ])
        .put(header, b"x")
        .pax(&[("SCHILY.xattr.user.mine", b"1"), ("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .symlink("link", "tool")
        .end();
    field.overlay(&tar).expect("applies");
    let tool = field.path("tool");
    let m = tool.metadata().expect("tool");
    assert_eq!((m.mode() & 0o7777, m.uid(), m.gid()), (0o6755, 12, 34), "setuid survives the change of owner");
    assert_eq!(attribute(&tool, "security.capability").as_deref(), Some(&capability[..]));
    for key in ["trusted.overlay.redirect", "trusted.overlay.opaque", "trusted.other"] {
        assert_eq!(attribute(&tool, key), None, "{key}");
        assert_eq!(attribute(&field.path("link"), key), None, "{key}");
    }
}

#[test]
fn overlay_form() {
    let field = Field::new();
    let tar = Tar::default()
        .file("gone/.wh.file", "")
        .dir("opaque")
        .file("opaque/new", "1")
        .file("opaque/.wh..wh..opq", "")
        // Removed below, and a directory again: before and after.
        .file(".wh.before", "")
        .dir("before")
        .file("before/new", "1")
        .dir("after")
        .file(".wh.after", "")
        // Removed below, and something below it without an entry for it.
        .file(".wh.implied", "")
        .file("implied/new", "1")
        // Removed below, and a file here.
        .file("replaced", "1")
        .file(".wh.replaced", "")
        .file(".wh..wh.plnk", "")
        .file(".wh..wh.orph/x", "")
        .end();
    let applied = field.overlay(&tar).expect("applies");
    assert!(is_whiteout(&field.path("gone/file")));
    assert!(is_opaque(&field.path("opaque")));
    for dir in ["before", "after", "implied"] {
        assert!(field.path(dir).is_dir() && is_opaque(&field.path(dir)), "{dir}");
    }
    assert_eq!(read(&field.path("replaced")), "1");
    let mut names: Vec<_> =
        fs::read_dir(field.root()).expect("list").map(|e| e.expect("entry").file_name().into_string()).collect();
    names.sort();
    assert_eq!(names.len(), 6, "AUFS's own files are ignored: {names:?}");
    assert_eq!(applied.bytes, 4);
}

#[test]
fn in_place_form() {
    let field = Field::new();
    let lower = Tar::default()
        .file("gone", "x")
        .file("tree/a/b", "x")
        .file("opaque/old", "x")
        .file("opaque/sub/old", "x")
        .file("kept/old", "x")
        .file("again/old", "x");
    field.in_place(&lower.end()).expect("applies");
    let upper = Tar::default()
        .file(".wh.gone", "")
        .file(".wh.tree", "")
        .file(".wh.never", "")
        .file("no/such/dir/.wh.x", "")
        .file("opaque/sub/new", "n")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/late", "n")
        .dir("kept")
        .file("again/new", "n")
        .file(".wh.again", "");
    field.in_place(&upper.end()).expect("applies");
    for gone in ["gone", "tree", "no", "opaque/old", "opaque/sub/old", "again/old"] {
        assert!(field.path(gone).symlink_metadata().is_err(), "{gone}");
    }
    for there in ["opaque/sub/new", "opaque/late", "kept/old", "again/new"] {
        assert!(field.path(there).exists(), "{there}");
    }
}

#[test]
fn parents_and_links_come_from_below() {
    let field = Field::new();
    let layers = tempfile::tempdir().expect("temporary directory");
    let (near, far) = (layers.path().join("near"), layers.path().join("far"));
    fs::create_dir_all(near.join("hidden")).expect("near");
    fs::create_dir_all(far.join("etc/deep")).expect("far");
    fs::create_dir_all(far.join("gone")).expect("far");
    fs::set_permissions(far.join("etc"), fs::Permissions::from_mode(0o1750)).expect("chmod");
    std::os::unix::fs::chown(far.join("etc"), Some(5), Some(6)).expect("chown");
    fs::write(far.join("etc/file"), "below").expect("file");
    fs::write(far.join("gone/file"), "below").expect("file");
    fs::create_dir(far.join("hidden")).expect("far");
    fs::write(far.join("hidden/file"), "below").expect("file");
    symlink(field.outside(), far.join("link")).expect("link");
    rustix::fs::setxattr(near.join("hidden"), "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
        .expect("opaque");
    let near_dir = File::open(&near).expect("open");
    rustix::fs::mknodat(&near_dir, "gone", rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::empty(), 0)
        .expect("whiteout");
    let options = || ApplyOptions::upper(vec![near.clone(), far.clone()]);

    let tar = Tar::default().file("etc/deep/new", "1").hardlink("hard", "etc/file").end();
    field.apply(&tar, options()).expect("applies");
    let m = field.path("etc").metadata().expect("etc");
    assert_eq!((m.mode() & 0o7777, m.uid(), m.gid()), (0o1750, 5, 6));
    assert_eq!(read(&field.path("hard")), "below");
    assert_eq!(
        field.path("hard").metadata().expect("hard").ino(),
        field.path("etc/file").metadata().expect("up").ino()
    );
    for target in ["gone/file", "hidden/file", "link/secret", "etc", "missing"] {
        let tar = Tar::default().hardlink("other", target).end();
        assert!(field.apply(&tar, options()).is_err(), "{target}");
    }
}

#[test]
fn times_names_and_sparse_files() {
    let field = Field::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let mut sparse = b"2\n0\n3\n1000000\n2\n".to_vec();
    sparse.resize(512, 0);
    sparse.extend_from_slice(b"abcde");
    let tar = Tar::default()
        .pax(&[("mtime", b"2000000.5")])
        .dir("dir")
        .file("dir/file", "x")
        .pax(&[("path", long.as_bytes()), ("mtime", b"-5")])
        .file("short", "long")
        .entry(b'L', "././@LongLink", "", format!("{}\0", "g".repeat(250)).as_bytes())
        .file("short", "gnu")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"1000010"),
        ])
        .entry(b'0', "GNUSparseFile.1/sparse", "", &sparse)
        .file("last", "x")
        .end();
    field.overlay(&tar).expect("applies");
    let m = field.path("dir").metadata().expect("dir");
    assert_eq!((m.mtime(), m.mtime_nsec()), (2_000_000, 500_000_000));
    assert_eq!(field.path("dir/file").metadata().expect("file").mtime(), 1_000_000);
    assert_eq!(read(&field.path(&long)), "long");
    assert_eq!(field.path(&long).metadata().expect("file").mtime(), 0);
    assert_eq!(read(&field.path(&"g".repeat(250))), "gnu");
    let bytes = fs::read(field.path("sparse")).expect("sparse");
    assert_eq!((bytes.len(), &bytes[..4], &bytes[999_999..1_000_003]), (1_000_010, &b"abc\0"[..], &b"\0de\0"[..]));
    assert_eq!(read(&field.path("last")), "x");
}

#[test]
fn the_stream_is_read_to_its_end() {
    let field = Field::new();
    let mut tar = Tar::default().file("x", "1").end();
    tar.extend_from_slice(&[9; 100_000]);
    let mut reader = crate::Digesting::new(&tar[..]);
    apply(&mut reader, &field.root(), ApplyOptions::in_place()).expect("applies");
    assert_eq!(reader.finish().1, tar.len() as u64);
}

/// Random sequences of entries over few names, so that links, directories and whiteouts meet in every order.
#[test]
fn nothing_outside_changes_in_random_layers() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).expect("31 bits") % below
    };
    let names = ["a", "b", "a/b", "b/a", "a/b/a", "../a", "/b", "a/../../b", "a/secret", "b/dir/x"];
    let outside_link = "../outside";
    let (mut applied, mut refused) = (0, 0);
    for round in 0..400 {
        let field = Field::new();
        let absolute = field.outside().to_str().expect("text").to_owned();
        let targets = [outside_link, &absolute, "/", ".", "a", "b", "..", "../outside/secret", "a/b"];
        let mut tar = Tar::default();
        for _ in 0..12 {
            let name = names[random(names.len())];
            let target = targets[random(targets.len())];
            tar = match random(7) {
                0 => tar.file(name, "data"),
                1 => tar.dir(name),
                2 | 3 if absolute.len() < 100 => tar.symlink(name, target),
                4 => tar.hardlink(name, target),
                5 => tar.file(&format!("{name}/.wh..wh..opq"), ""),
                _ => {
                    let (dir, last) = name.rsplit_once('/').unwrap_or((".", name));
                    tar.file(&format!("{dir}/.wh.{last}"), "")
                }
            };
        }
        let tar = tar.end();
        let result = if round % 2 == 0 { field.overlay(&tar) } else { field.in_place(&tar) };
        if result.is_ok() { applied += 1 } else { refused += 1 }
    }
    assert!(applied > 20 && refused > 20, "{applied} applied, {refused} refused: the mixture tests nothing");
}
