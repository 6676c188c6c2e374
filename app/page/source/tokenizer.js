// WordPiece as BERT's tokenizer does it, from the tokenizer.json that transformers writes.

const CJK = /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;
const CONTROL = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\ufffd]/gu;
const PUNCTUATION = /([\p{P}!-/:-@[-`{-~])/gu;
const MARKS = /\p{Mn}/gu;
const SPACE = /[\t\n\r\p{Z}]/gu;
const LONGEST_WORD = 100; // letters; longer ones are unknown

/** Plain lower-case text: no control characters, no accents, each CJK character a word. */
function normalised(text) {
  const spaced = text.replace(SPACE, " ").replace(CONTROL, "").replace(CJK, " $& ");
  return spaced.normalize("NFD").replace(MARKS, "").toLowerCase();
}

export class WordPiece {
  /**
   * @param {object} json content of tokenizer.json
   * @param {number} length of what `encode` gives
   */
  constructor(json, length) {
    this.vocabulary = new Map(Object.entries(json.model.vocab));
    this.length = length;
    this.unknown = json.model.unk_token;
    this.special = new Map(json.added_tokens.filter((token) => token.special).map((token) => [token.content, token.id]));
    const escaped = [...this.special.keys()].map((name) => name.replace(/[[\]]/g, "\\$&"));
    this.parts = new RegExp(`(${escaped.join("|")})`);
  }

  /** Ids of a text's pieces, and the words that the vocabulary has no pieces for. */
  pieces(text) {
    const ids = [];
    const unknown = [];
    for (const part of text.split(this.parts)) {
      if (this.special.has(part)) {
        ids.push(this.special.get(part));
        continue;
      }
      for (const word of normalised(part).replace(PUNCTUATION, " $1 ").split(" ").filter(Boolean)) {
        const found = this.piecesOf(word);
        if (!found) unknown.push(word);
        ids.push(...(found ?? [this.vocabulary.get(this.unknown)]));
      }
    }
    return { ids, unknown };
  }

  /** The longest pieces from the left; null where some letter is in none. */
  piecesOf(word) {
    const letters = [...word];
    if (letters.length > LONGEST_WORD) return null;
    const ids = [];
    for (let start = 0; start < letters.length; ) {
      let end = letters.length;
      let id;
      for (; end > start; end--) {
        id = this.vocabulary.get((start ? "##" : "") + letters.slice(start, end).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) return null;
      ids.push(id);
      start = end;
    }
    return ids;
  }

  /**
   * What the text encoder reads.
   * @param {string} text
   * @returns {{ids: number[], mask: number[], count: number, unknown: string[]}} ids and mask padded to the length;
   *   count of pieces before any was cut
   */
  encode(text) {
    const { ids, unknown } = this.pieces(text);
    const [start, end, padding] = ["[CLS]", "[SEP]", "[PAD]"].map((name) => this.vocabulary.get(name));
    const kept = [start, ...ids.slice(0, this.length - 2), end];
    const rest = this.length - kept.length;
    return {
      ids: [...kept, ...Array(rest).fill(padding)],
      mask: [...Array(kept.length).fill(1), ...Array(rest).fill(0)],
      count: ids.length + 2,
      unknown,
    };
  }
}
