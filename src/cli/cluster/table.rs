//! Columns of text.

/// Rows with the names of their columns above, as narrow as their cells allow; nothing where there are no rows.
pub fn table<const N: usize>(names: [&str; N], rows: &[[String; N]]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let head = names.map(String::from);
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..N).map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in all() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        assert_eq!(table(["a", "name"], &[row("12", "x"), row("3", "longer")]), "a   name\n12  x\n3   longer\n");
        assert_eq!(table(["a", "b"], &[]), "");
    }
}
