import assert from 'node:assert/strict'
import test from 'node:test'
import { lookUp } from '../../../web/shared/message_text.js'

const known = {
  en: { wantune: { chart: { step: 'step {step} of {total}', only: 'English' } } },
  zh: { wantune: { chart: { step: '第 {step} / {total} 步' } } }
}

test('a text is found in the language, in its main language, in English', () => {
  const values = { step: 3, total: 9 }
  assert.equal(lookUp(known, 'zh', 'chart.step', values), '第 3 / 9 步')
  assert.equal(lookUp(known, 'zh-TW', 'chart.step', values), '第 3 / 9 步')
  assert.equal(lookUp(known, 'fr', 'chart.step', values), 'step 3 of 9')
  assert.equal(lookUp(known, 'zh', 'chart.only'), 'English')
})

test('what is not there is its key, and a value that is not given stays visible', () => {
  assert.equal(lookUp({}, 'en', 'chart.step'), 'chart.step')
  assert.equal(lookUp(known, 'en', 'chart'), 'chart')
  assert.equal(lookUp(known, 'en', 'chart.step', { step: 1 }), 'step 1 of {total}')
})
