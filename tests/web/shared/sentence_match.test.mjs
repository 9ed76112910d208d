import assert from 'node:assert/strict'
import test from 'node:test'
import { inOtherWords, translator } from '../../../web/shared/sentence_match.js'

const say = translator({
  '{name} is empty; export it again.': '{name} 是空的；请重新导出。',
  '{name} is {value}; it takes a {kind}.': '{name} 为 {value}；需要 {kind}。',
  'No file in {root} can be used: {reasons}{more}': '{root} 中没有可用的文件：{reasons}{more}',
  'And {value} more.': '及另外 {value} 个。',
  '{name} is a clip; {remedy}.': '{name} 是视频；请{remedy}。',
  'add {longest} to frame_buckets, or {remedy}': '加入 {longest}，或{remedy}',
  'use a longer clip': '用更长的视频',
  '{files}: {remark}': '{files}：{remark}',
  '{verb} {kind} {done} of {total}{eta}': '{verb}{kind} {done} / {total}{eta}',
  encoding: '编码',
  ', {duration} left': '，剩余 {duration}',
  'has no caption; its name is taken for one.': '没有标注；用其文件名。',
  'The path has a $& and (brackets) in {name}.': '{name} 中有 $& 和 (括号)。',
  'not translated yet {name}': ''
})

test('what was filled in stands in the translation', () => {
  assert.equal(say('a b.png is empty; export it again.'), 'a b.png 是空的；请重新导出。')
  assert.equal(say("rank is 'x; y'; it takes a int."), "rank 为 'x; y'；需要 int。")
})

test('what was filled in is translated where it is a sentence, or several', () => {
  assert.equal(say('a.mp4 is a clip; add 5 to frame_buckets, or use a longer clip.'), 'a.mp4 是视频；请加入 5，或用更长的视频。')
  assert.equal(
    say('No file in /data can be used: a.png is empty; export it again. b.png is empty; export it again. And 3 more.'),
    '/data 中没有可用的文件：a.png 是空的；请重新导出。b.png 是空的；请重新导出。及另外 3 个。')
  assert.equal(say('a.png: has no caption; its name is taken for one.'), 'a.png：没有标注；用其文件名。')
})

test('how parts are put together is found last, and with whole numbers alone', () => {
  assert.equal(say('encoding x 3 of 10, 5 s left'), '编码x 3 / 10，剩余 5 s')
  assert.equal(say('what was put in front of it'), 'what was put in front of it')
})

test('lines are translated one by one', () => {
  assert.equal(say('x\n  a.png is empty; export it again.\n'), 'x\n  a.png 是空的；请重新导出。\n')
})

test('what is not known stays as it is', () => {
  for (const text of ['another sentence.', '', 'not translated yet x', '中文', undefined, null, 5, 'x'.repeat(50_000)]) {
    assert.equal(say(text), text)
  }
})

test('special letters are letters', () => {
  assert.equal(say('The path has a $& and (brackets) in $1.'), '$1 中有 $& 和 (括号)。')
})

test('a long text of much that is nearly a sentence takes no time', () => {
  const began = performance.now()
  say('is is; it a takes a is : '.repeat(500))
  assert.ok(performance.now() - began < 2000)
})

test('in an answer sentences are translated, and names and captions are not', () => {
  const words = (text) => `<${text}>`
  const answer = { state: 'x', error: 'e', notes: ['n'], files: [{ file: 'f', reason: 'r', captions: ['c'] }],
    runs: [{ name: 'm', faults: ['t'] }] }
  assert.deepEqual(inOtherWords(answer, words), { state: 'x', error: '<e>', notes: ['<n>'],
    files: [{ file: 'f', reason: '<r>', captions: ['c'] }], runs: [{ name: 'm', faults: ['<t>'] }] })
  assert.equal(inOtherWords(null, words), null)
})
