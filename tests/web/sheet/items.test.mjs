import assert from 'node:assert/strict'
import test from 'node:test'
import * as sheet from '../../../web/sheet/items.js'

const used = (file, more = {}) => ({
  file, used: true, held_out: false, text: `about ${file}`, captions: [`zwx, about ${file}`],
  samples: [{ width: 64, height: 48, frames: 1, frames_used: [[0, 0]], repeats: 2 }], ...more
})
const ANSWER = { files: [
  used('a.png'), used('b.mp4', { held_out: true, samples: [{ frames: 33 }, { frames: 33 }] }),
  used('c.png', { text: ' ' }), { file: 'd.txt.docx', used: false, reason: 'd.txt.docx is no picture.' },
  { file: 'e.png', used: false, text: '', reason: 'e.png has no caption.' }
] }
const names = (items) => items.map(({ key }) => key)

test('the configuration is the values of known widgets, and of the settings', () => {
  const node = { widgets: [{ name: 'folder', value: 'x' }, { name: 'wantune_sheet', value: {} },
    { name: 'resolution', value: 64 }] }
  assert.deepEqual(sheet.configOf(node), { folder: 'x', resolution: 64 })
  const settings = { widgets: [{ name: 'masks', value: 'none' }, { name: 'else', value: 1 }] }
  assert.deepEqual(sheet.configOf(node, settings), { folder: 'x', resolution: 64, settings: { masks: 'none' } })
})

test('widgets whose value comes over a link are named', () => {
  const node = (links, inputs) => ({ inputs, isInputConnected: (index) => links.includes(index) })
  const load = node([0, 1], [{ name: 'settings' }, { name: 'folder', widget: { name: 'folder' } },
    { name: 'resolution', widget: { name: 'resolution' } }])
  assert.deepEqual(sheet.linkedWidgets(load, node([0], [{ widget: { name: 'masks' } }])), ['folder', 'masks'])
  assert.deepEqual(sheet.linkedWidgets({}), [])
})

test('there is an item for each sample and for each file that is left out', () => {
  assert.deepEqual(names(sheet.itemsOf(ANSWER)), ['a.png#0', 'b.mp4#0', 'b.mp4#1', 'c.png#0', 'd.txt.docx', 'e.png'])
  assert.deepEqual(sheet.itemsOf({}), [])
})

test('the filter takes kinds and words', () => {
  const items = sheet.itemsOf(ANSWER)
  const kept = (text, kind) => names(sheet.filtered(items, text, kind))
  assert.equal(kept('', 'all').length, items.length)
  assert.deepEqual(kept('', 'used'), ['a.png#0', 'c.png#0'])
  assert.deepEqual(kept('', 'left_out'), ['d.txt.docx', 'e.png'])
  assert.deepEqual(kept('', 'held_out'), ['b.mp4#0', 'b.mp4#1'])
  assert.deepEqual(kept('', 'without_caption'), ['c.png#0', 'e.png'])
  assert.deepEqual(kept('  ABOUT a.png', 'all'), ['a.png#0'])
  assert.deepEqual(kept('no picture', 'all'), ['d.txt.docx'])
  assert.deepEqual(kept('nothing like it', 'all'), [])
  assert.deepEqual(sheet.FILTERS, ['all', 'used', 'left_out', 'held_out', 'without_caption'])
})

test('totals are told in numbers that can be read', () => {
  const totals = { files_used: 3, files: 4, files_held_out: 1, samples: 20,
    buckets: [{ width: 64, height: 48, frames: 33 }] }
  assert.deepEqual(sheet.totalsOf({ totals: { ...totals, expected_cache_bytes: 1.5 * 2 ** 20 } }),
    { used: 3, files: 4, held_out: 1, samples: 20, buckets: ['64x48x33'], cache: '1.5 MiB' })
  assert.equal(sheet.totalsOf({ totals: { ...totals, expected_cache_bytes: 2000 * 2 ** 20 } }).cache, '2.0 GiB')
  assert.equal(sheet.totalsOf({ totals: { ...totals, expected_cache_bytes: 20.4 * 2 ** 20 } }).cache, '20 MiB')
  assert.equal(sheet.totalsOf({ totals: null }), null)
})

const words = (caption, trigger) => sheet.marked(caption, trigger)
  .map(({ text, isTrigger }) => (isTrigger ? `[${text}]` : text)).join('')

test('the trigger word is marked where it stands as a word of its own', () => {
  assert.equal(words('zwx, a zwx and zwxy, azwx', 'zwx'), '[zwx], a [zwx] and zwxy, azwx')
  assert.equal(words('art at a party', ' art '), '[art] at a party')
  assert.equal(words('一只小猫坐着', '小猫'), '一只[小猫]坐着')
  assert.equal(words('小zwx猫', 'zwx'), '小[zwx]猫')
  assert.equal(words('a (c++) b', '(c++)'), 'a [(c++)] b')
  assert.equal(words('GF Carty Chan smiles', 'GF Carty Chan'), '[GF Carty Chan] smiles')
  assert.equal(words('éart art_ art', 'art'), 'éart art_ [art]')
  assert.equal(words('as it is', ''), 'as it is')
  assert.equal(words('', 'zwx'), '')
})
