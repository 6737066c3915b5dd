//! The messages of RDP that the server reads and writes, without any socket ([MS-RDPBCGR], and [MS-RDPECLIP] for the clipboard).
//!
//! A message is one of two kinds. The first ones, and all of virtual channels, are TPKT packets with X.224 and MCS in them.
//! Keys and pictures have the shorter form that is called fast-path.

/// The channel of the desktop.
pub const DESKTOP: u16 = 1003;

/// The channel of the client. The virtual channels have the next numbers.
const CLIENT: u16 = 1004;

/// The channel of the server.
const SERVER: u16 = 1002;

/// The least number of a user's channel, which MCS subtracts.
const FIRST_USER: u16 = 1001;

/// The first byte of a TPKT packet. Fast-path messages begin with another one.
pub const TPKT: u8 = 3;

/// The longest side that a [`picture`] can have: a message has 32 KiB at most.
pub const MAX_SIDE: u16 = 64;

/// The kinds of messages on the channel of the clipboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clip {
    /// The server's clipboard is ready.
    MonitorReady = 1,
    /// The formats of what is on the sender's clipboard.
    FormatList = 2,
    /// The formats have arrived.
    FormatListResponse = 3,
    /// What is on the clipboard is wanted.
    FormatDataRequest = 4,
    /// What is on the clipboard.
    FormatDataResponse = 5,
    /// What the sender's clipboard can do.
    Capabilities = 7,
}

/// Where the bytes of a message are read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// The number of a channel. MCS has the most significant byte in front.
    fn channel(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// A length in PER's form.
    fn length(&mut self) -> Option<usize> {
        let first = self.u8()?;
        if first & 0x80 == 0 {
            return Some(first.into());
        }
        Some(usize::from(first & 0x7f) << 8 | usize::from(self.u8()?))
    }
}

/// The security protocols that a client offers with its first packet, X.224 Connection Request. None if TLS is not among them.
pub fn offered_protocols(request: &[u8]) -> Option<u32> {
    // RDP_NEG_REQ ends the packet: its type, its flags, its length, and the protocols.
    let &[.., 1, _, 8, 0, a, b, c, d] = request else { return None };
    Some(u32::from_le_bytes([a, b, c, d])).filter(|protocols| protocols & 1 != 0)
}

/// What a client sends after the TLS handshake.
#[derive(Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// MCS Connect Initial, with the names of the virtual channels.
    Connect(Vec<[u8; 8]>),
    /// MCS Erect Domain Request, which needs no answer.
    ErectDomain,
    /// MCS Attach User Request.
    AttachUser,
    /// MCS Channel Join Request, with the channel.
    JoinChannel(u16),
    /// Client Info, which has the client's name and password.
    Info,
    /// Font List, which ends the activation.
    FontList,
    /// The channel and the first piece of a message on a virtual channel.
    Virtual(u16, &'a [u8]),
    /// Anything else on a channel.
    Other,
}

/// Reads the content of a TPKT packet. None if it is not RDP, or the client leaves.
pub fn request(packet: &[u8]) -> Option<Request<'_>> {
    // X.224 Data.
    let mut packet = Reader(packet.strip_prefix(&[2, 0xf0, 0x80])?);
    match packet.u8()? {
        0x7f => Some(Request::Connect(virtual_channels(packet.0)?)),
        0x04 => Some(Request::ErectDomain),
        0x28 => Some(Request::AttachUser),
        0x38 => {
            packet.channel()?;
            packet.channel().map(Request::JoinChannel)
        }
        // Send Data Request.
        0x64 => {
            packet.channel()?;
            let channel = packet.channel()?;
            packet.u8()?;
            let length = packet.length()?;
            Some(data(channel, packet.bytes(length)?))
        }
        _ => None,
    }
}

/// What was sent on a channel.
fn data(channel: u16, data: &[u8]) -> Request<'_> {
    if channel != DESKTOP {
        // The length of the whole message, and flags of this piece of it, of which 1 stands for the first.
        return match data.split_at_checked(8) {
            Some((header, message)) if header[4] & 1 != 0 => Request::Virtual(channel, message),
            _ => Request::Other,
        };
    }
    match data {
        // The flags of Client Info, in a security header. Other messages have their type in the third byte.
        [0x40, 0, 0, 0, ..] => Request::Info,
        // Share Control Header (6 bytes) with the type of data, and Share Data Header with that of Font List.
        [_, _, kind, _, _, _, _, _, _, _, _, _, _, _, 0x27, ..] if kind & 0xf == 7 => Request::FontList,
        _ => Request::Other,
    }
}

/// The names of the virtual channels in MCS Connect Initial.
fn virtual_channels(connect: &[u8]) -> Option<Vec<[u8; 8]>> {
    const KEY: &[u8] = b"Duca";
    const NETWORK: u16 = 0xc003;
    let start = connect.windows(KEY.len()).position(|bytes| bytes == KEY)? + KEY.len();
    let mut blocks = Reader(&connect[start..]);
    let length = blocks.length()?;
    blocks = Reader(blocks.bytes(length)?);
    let mut names = Vec::new();
    while !blocks.0.is_empty() {
        let kind = blocks.u16()?;
        let length = usize::from(blocks.u16()?).checked_sub(4)?;
        let mut block = Reader(blocks.bytes(length)?);
        if kind == NETWORK {
            // RDP allows 31.
            for _ in 0..block.u32()?.min(31) {
                names.push(block.array()?);
                // Its options.
                block.u32()?;
            }
        }
    }
    Some(names)
}

/// The channel with this name. Names end with a zero, and their case does not matter.
pub fn find_channel(channels: &[[u8; 8]], name: &[u8; 8]) -> Option<u16> {
    let index = channels.iter().position(|channel| channel.eq_ignore_ascii_case(name))?;
    Some(CLIENT + 1 + index as u16)
}

/// The keys that are pressed in a fast-path message: their scancodes. None if the message is malformed.
pub fn pressed_keys(first: u8, content: &[u8]) -> Option<Vec<u8>> {
    let mut content = Reader(content);
    let count = match first >> 2 & 0xf {
        0 => content.u8()?,
        count => count,
    };
    let mut keys = Vec::new();
    for _ in 0..count {
        let event = content.u8()?;
        let is_release = event & 1 != 0;
        match event >> 5 {
            // A scancode.
            0 => {
                let key = content.u8()?;
                keys.extend((!is_release).then_some(key));
            }
            // The mouse, its further buttons, and its relative movement.
            1 | 2 | 5 => drop(content.bytes(6)?),
            // The state of the lock keys, in the event's flags.
            3 => {}
            // A character.
            4 => drop(content.bytes(2)?),
            // A timestamp.
            6 => drop(content.bytes(4)?),
            _ => return None,
        }
    }
    Some(keys)
}

fn tpkt(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u16 + 4).to_be_bytes();
    [&[TPKT, 0], &length[..], content].concat()
}

fn mcs(parts: &[&[u8]]) -> Vec<u8> {
    // X.224 Data.
    tpkt(&[&[2, 0xf0, 0x80], &parts.concat()[..]].concat())
}

/// Numbers with the least significant byte in front.
fn le<const N: usize>(numbers: [u16; N]) -> Vec<u8> {
    numbers.map(u16::to_le_bytes).concat()
}

/// A length in PER's form, of two bytes.
fn per(length: usize) -> [u8; 2] {
    (length as u16 | 0x8000).to_be_bytes()
}

/// A value in BER.
fn ber(tag: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    [tag, &[0x82], &(content.len() as u16).to_be_bytes(), &content].concat()
}

/// X.224 Connection Confirm, which chooses TLS.
pub fn connection_confirm() -> Vec<u8> {
    tpkt(&[14, 0xd0, 0, 0, 0, 0, 0, 2, 0, 8, 0, 1, 0, 0, 0])
}

/// MCS Connect Response, to a client that has offered these security protocols.
pub fn connect_response(protocols: u32, virtual_channels: usize) -> Vec<u8> {
    let count = virtual_channels as u16;
    // Two bytes each, and a multiple of four.
    let padding = count % 2;
    // The version of RDP 5.
    let core = [&le([0x0c01, 12, 4, 8])[..], &protocols.to_le_bytes()].concat();
    // No encryption below TLS.
    let security = le([0x0c02, 12, 0, 0, 0, 0]);
    let network = le([0x0c03, 8 + 2 * (count + padding), DESKTOP, count]);
    let channels = (1..=count).flat_map(|channel| (CLIENT + channel).to_le_bytes()).collect::<Vec<_>>();
    let blocks = [&core[..], &security, &network, &channels, &vec![0; usize::from(2 * padding)]].concat();
    // Conference Create Response, which ends with Microsoft's key and the blocks.
    let response = [b"\x14\x76\x0a\x01\x01\x00\x01\xc0\x00McDn", &per(blocks.len())[..], &blocks].concat();
    let conference = [b"\x00\x05\x00\x14\x7c\x00\x01", &per(response.len())[..], &response].concat();
    // Limits of MCS, with the values that the specification has as an example.
    let limits = b"\x30\x1a\x02\x01\x22\x02\x01\x03\x02\x01\x00\x02\x01\x01\x02\x01\x00\x02\x01\x01\x02\x03\x00\xff\xf8\x02\x01\x02";
    // The result is success, and the connection has the number 0.
    mcs(&[&ber(&[0x7f, 0x66], &[b"\x0a\x01\x00\x02\x01\x00", limits, &ber(&[4], &[&conference])])])
}

/// MCS Attach User Confirm.
pub fn attach_user_confirm() -> Vec<u8> {
    mcs(&[&[0x2e, 0], &(CLIENT - FIRST_USER).to_be_bytes()])
}

/// MCS Channel Join Confirm.
pub fn channel_join_confirm(channel: u16) -> Vec<u8> {
    let channel = channel.to_be_bytes();
    mcs(&[&[0x3e, 0], &(CLIENT - FIRST_USER).to_be_bytes(), &channel, &channel])
}

/// MCS Send Data Indication.
fn send(channel: u16, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let from = (SERVER - FIRST_USER).to_be_bytes();
    mcs(&[&[0x68], &from, &channel.to_be_bytes(), &[0x70], &per(content.len()), &content])
}

/// Server License Error: the client needs no licence.
pub fn no_license() -> Vec<u8> {
    send(DESKTOP, &[b"\x80\0\0\0", b"\xff\x03\x10\0", b"\x07\0\0\0\x02\0\0\0", b"\x04\0\0\0"])
}

/// The number of the share, which the server chooses.
const SHARE: [u8; 4] = 0x0001_03ea_u32.to_le_bytes();

/// Demand Active: the capabilities of the server, with the size of its desktop.
pub fn demand_active([width, height]: [u16; 2]) -> Vec<u8> {
    let sets = [
        // General: the version of RDP 4 and later, fast-path output, long passwords, and no header of compressed bitmaps.
        (1, 24, le([1, 3, 0x200, 0, 0, 0x405])),
        // Bitmap: 32 bits per pixel, 1, 4 and 8 as well, the size and that it counts, compression, several rectangles.
        (2, 28, le([32, 1, 1, 1, width, height, 0, 1, 1, 0, 1])),
        // Order: none.
        (3, 88, Vec::new()),
        // Pointer: in colour, and a cache for 20.
        (8, 10, le([1, 20, 20])),
        // Share: the server's channel.
        (9, 8, le([SERVER])),
        // Input: scancodes, further mouse buttons, characters, fast-path.
        (13, 88, le([0x35])),
        // Virtual channels: no compression.
        (20, 8, le([0, 0])),
        // Multifragment update: the size of a whole update, 64 KiB.
        (26, 8, le([0, 1])),
    ];
    let mut content = le([sets.len() as u16, 0]);
    for (kind, length, body) in sets {
        content.extend(le([kind, length]));
        content.extend(&body);
        content.resize(content.len() + usize::from(length) - 4 - body.len(), 0);
    }
    let source = b"RDP\0";
    let lengths = le([source.len() as u16, content.len() as u16]);
    // The number of the session comes last.
    control(0x11, &[&SHARE, &lengths, source, &content, &[0; 4]])
}

/// A message with a Share Control Header.
fn control(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    send(DESKTOP, &[&le([content.len() as u16 + 6, kind, SERVER]), &content])
}

/// A message with a Share Data Header.
fn share(kind: u8, content: &[u8]) -> Vec<u8> {
    control(0x17, &[&SHARE, &[0, 1], &le([content.len() as u16 + 4]), &[kind, 0, 0, 0], content])
}

/// What ends the activation: Synchronize, Control (cooperate), Control (granted), Font Map.
pub fn activation() -> Vec<u8> {
    [
        share(0x1f, &le([1, CLIENT])),
        share(0x14, &le([4, 0, 0, 0])),
        share(0x14, &le([2, CLIENT, SERVER, 0])),
        share(0x28, &le([0, 0, 3, 4])),
    ]
    .concat()
}

/// A message on the channel of the clipboard.
pub fn clip(channel: u16, kind: Clip, content: &[u8]) -> Vec<u8> {
    // Only the answers say that something went well.
    let flags = u16::from(matches!(kind, Clip::FormatListResponse | Clip::FormatDataResponse));
    let length = content.len() as u32;
    // The whole length with the header, and that this piece is the first and the last.
    let header = [(length + 8).to_le_bytes(), 3_u32.to_le_bytes()].concat();
    send(channel, &[&header, &le([kind as u16, flags]), &length.to_le_bytes(), content])
}

/// What begins the clipboard: Capabilities, with long names of formats, and Monitor Ready.
pub fn clipboard(channel: u16) -> Vec<u8> {
    let capabilities = le([1, 0, 1, 12, 2, 0, 2, 0]);
    [clip(channel, Clip::Capabilities, &capabilities), clip(channel, Clip::MonitorReady, &[])].concat()
}

/// There is text on the clipboard: its format is Unicode text, without a name.
pub fn text_is_there(channel: u16) -> Vec<u8> {
    clip(channel, Clip::FormatList, &le([13, 0, 0]))
}

/// The text on the clipboard.
pub fn text(channel: u16, text: &str) -> Vec<u8> {
    let text = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    clip(channel, Clip::FormatDataResponse, &text)
}

/// A fast-path message that draws an area, whose sides are at most [`MAX_SIDE`]. Each pixel has 4 bytes, and the lowest row comes first.
pub fn picture([x, y]: [u16; 2], [width, height]: [u16; 2], pixels: &[u8]) -> Vec<u8> {
    // One rectangle of a bitmap, with its last column and row, not compressed.
    let rectangle =
        le([1, 1, x, y, x + width - 1, y + height - 1, width, height, 32, 0, pixels.len() as u16]);
    let size = (rectangle.len() + pixels.len()) as u16;
    // Three bytes are in front of the size, and it has two.
    let length = 3 + 1 + 2 + size;
    [&[0], &per(length.into())[..], &[1], &le([size]), &rectangle, pixels].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// MCS Connect Initial, as far as it is read, with these blocks of the client.
    fn connect(blocks: &[u8]) -> Vec<u8> {
        [b"\x02\xf0\x80\x7f\x65\x82\x01\x90Duca", &per(blocks.len())[..], blocks].concat()
    }

    fn name(text: &str) -> [u8; 8] {
        let mut name = [0; 8];
        name[..text.len()].copy_from_slice(text.as_bytes());
        name
    }

    #[test]
    fn only_a_client_that_offers_tls_is_served() {
        let request =
            |protocols| [b"\x0e\xe0\0\0\0\0\0Cookie: x\r\n\x01\0\x08\0", &[protocols, 0, 0, 0][..]].concat();
        assert_eq!((offered_protocols(&request(1)), offered_protocols(&request(11))), (Some(1), Some(11)));
        for bad in [&request(0)[..], &request(2), b"", &[6, 0xe0]] {
            assert_eq!(offered_protocols(bad), None);
        }
    }

    #[test]
    fn virtual_channels_are_found_by_name() {
        let mut blocks = le([0xc001, 6, 0xffff, 0xc003, 8 + 2 * 12, 2, 0]);
        for channel in ["rdpsnd", "CLIPRDR"] {
            blocks.extend(name(channel));
            blocks.extend([0; 4]);
        }
        let connect = connect(&blocks);
        let Some(Request::Connect(channels)) = request(&connect) else { panic!("{:?}", request(&connect)) };
        assert_eq!(channels, [name("rdpsnd"), name("CLIPRDR")]);
        assert_eq!(find_channel(&channels, b"cliprdr\0"), Some(1006));
        assert_eq!(find_channel(&channels, b"rdpdr\0\0\0"), None);
        assert_eq!(request(&connect[..connect.len() - 1]), None, "it is cut short");
    }

    #[test]
    fn what_is_not_rdp_ends_the_connection() {
        for bad in [
            &b""[..],
            b"GET / HTTP/1.1",
            b"\x02\xf0\x80",
            b"\x02\xf0\x80\x7f",
            b"\x02\xf0\x80\x64\0\0\x03\xeb\x70\x7f",
            // The length of a block is less than that of its header.
            &connect(&le([0xc001, 3])),
            // MCS Disconnect Provider Ultimatum.
            b"\x02\xf0\x80\x21\x80",
        ] {
            assert_eq!(request(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn requests_are_told_apart() {
        let sent = |channel: u16, data: &[u8]| {
            [&[2, 0xf0, 0x80, 0x64, 0, 3], &channel.to_be_bytes()[..], &[0x70, data.len() as u8], data]
                .concat()
        };
        assert_eq!(request(b"\x02\xf0\x80\x38\0\x03\x03\xeb"), Some(Request::JoinChannel(DESKTOP)));
        assert_eq!(request(&sent(DESKTOP, &[0x40, 0, 0, 0])), Some(Request::Info));
        let font_list = [0, 0, 0x17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x27, 0];
        assert_eq!(request(&sent(DESKTOP, &font_list)), Some(Request::FontList));
        assert_eq!(request(&sent(DESKTOP, &font_list[..14])), Some(Request::Other));
        assert_eq!(request(&sent(DESKTOP, &[0x40, 0, 0x17, 0])), Some(Request::Other), "64 bytes of data");
        let first = [4, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0];
        assert_eq!(request(&sent(1005, &first)), Some(Request::Virtual(1005, &[4, 0, 0, 0])));
        let further = [4, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0];
        assert_eq!(request(&sent(1005, &further)), Some(Request::Other));
    }

    #[test]
    fn keys_count_when_they_are_pressed() {
        // The lock keys, 0x1e pressed and released, the mouse, a character, and 0x1c pressed.
        let events = [0x60, 0, 0x1e, 1, 0x1e, 0x20, 0, 8, 1, 0, 1, 0, 0x80, 0x41, 0, 0, 0x1c];
        assert_eq!(pressed_keys(6 << 2, &events), Some(vec![0x1e, 0x1c]));
        let counted = [&[6], &events[..]].concat();
        assert_eq!(pressed_keys(0, &counted), Some(vec![0x1e, 0x1c]));
        assert_eq!(pressed_keys(7 << 2, &events), None, "an event is missing");
        assert_eq!(pressed_keys(1 << 2, &[0xe0]), None, "there is no such event");
    }

    #[test]
    fn lengths_are_those_of_the_content() {
        let pixels = vec![7; 4 * usize::from(MAX_SIDE * MAX_SIDE)];
        let picture = picture([1, 2], [MAX_SIDE; 2], &pixels);
        assert_eq!(picture.len(), usize::from(u16::from_be_bytes([picture[1] & 0x7f, picture[2]])));
        for packet in [connection_confirm(), connect_response(1, 3), demand_active([800, 600]), no_license()]
        {
            assert_eq!(packet.len(), usize::from(u16::from_be_bytes([packet[2], packet[3]])));
        }
    }
}
