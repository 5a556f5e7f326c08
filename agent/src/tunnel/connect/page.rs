//! What a page of HTML says, in words: proxies explain their refusals in pages.

/// The text of `html` without tags, comments, styles and scripts. A rough reading will do: it is
/// for a line in a log. What is not HTML comes out as it is.
pub(super) fn text(html: &str) -> String {
    if !html.trim_start().starts_with('<') {
        return html.to_owned();
    }
    let mut text = String::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        text.push_str(&rest[..start]);
        text.push(' ');
        rest = &rest[start..];
        let end = match () {
            () if rest.starts_with("<!--") => "-->",
            () if opens(rest, "style") => "</style>",
            () if opens(rest, "script") => "</script>",
            () => ">",
        };
        // An element that does not end, as where the page was cut, hides the rest.
        rest = find(rest, end).map_or("", |at| &rest[at + end.len()..]);
    }
    text.push_str(rest);
    text
}

fn opens(html: &str, element: &str) -> bool {
    html.get(1..=element.len())
        .is_some_and(|name| name.eq_ignore_ascii_case(element))
}

fn find(haystack: &str, needle: &str) -> Option<usize> {
    haystack
        .as_bytes()
        .windows(needle.len())
        .position(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(html: &str) -> String {
        let text = text(html);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_what_a_reader_sees_remains() {
        for (html, seen) in [
            (
                "<p>ask the network department</p>",
                "ask the network department",
            ),
            (
                "<!DOCTYPE html><html><head><title>ERROR</title><STYLE type=x>\n<!-- body {} --></Style>\
                 <script>if (a < b) {}</script></head><body>Access<br/>Denied <!-- > --> now",
                "ERROR Access Denied now",
            ),
            ("a < b, not a page", "a < b, not a page"),
            ("<p>cut <style>body {", "cut"),
            ("<", ""),
            ("<p>naïve — é", "naïve — é"),
        ] {
            assert_eq!(words(html), seen, "{html}");
        }
    }
}
