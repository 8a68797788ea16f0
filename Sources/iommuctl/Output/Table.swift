/// Columns for a terminal: each as wide as its widest cell, the last one open.
struct Table {
  private var rows: [[String]]

  init(_ headings: String...) { rows = [headings] }

  /// A row; what is not known or not there is a dash.
  mutating func add(_ cells: String?...) { rows.append(cells.map { ($0 ?? "").isEmpty ? "-" : $0! }) }

  var text: String {
    let widths = (0..<rows[0].count).map { column in rows.map { $0[column].count }.max() ?? 0 }
    return rows.map { row in
      let cells = zip(row, widths).map { cell, width in
        cell + String(repeating: " ", count: width - cell.count)
      }
      let line = cells.joined(separator: "  ")
      return String(line.reversed().drop { $0 == " " }.reversed()) + "\n"
    }.joined()
  }
}
