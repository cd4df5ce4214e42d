/// A fingerprint of everything the XDP program is made from: every file below `folder` by name and content, and `how` it
/// is built.
///
/// FNV-1a (RFC 9923's 64-bit form): it tells builds apart, it protects nothing. Shared with blocker's build script by
/// `include!`, so it has no imports of its own.
fn fingerprint(folder: &Path, how: &Path) -> io::Result<String> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() { walk(&path, files)? } else { files.push(path) }
        }
        Ok(())
    }
    let mut files = Vec::new();
    walk(folder, &mut files)?;
    files.sort();
    files.push(how.to_owned());
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for file in files {
        // The file outside is the last: it needs no name.
        let name = file.strip_prefix(folder).unwrap_or(Path::new("")).to_string_lossy().into_owned();
        for byte in name.into_bytes().into_iter().chain(fs::read(&file)?) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    Ok(format!("{hash:016x}"))
}
