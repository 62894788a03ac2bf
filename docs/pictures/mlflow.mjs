// Photographs MLflow's page of an experiment, one parent run unfolded:
//
//   npm install playwright-core
//   MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow server --backend-store-uri sqlite:///runs/mlflow.db --port 5633
//   node docs/pictures/mlflow.mjs http://127.0.0.1:5633 1 v1fm31-demo docs/pictures/mlflow.png
//
// mlflow.png shows the experiment of `python ensembles/build.py v1fm31` while `v1fm31-shared` was being built: a copy of the
// store, to which short names, the parents' outcome and the view were added, as builds write them themselves since.
import { createRequire } from 'node:module';

// From the folder it is started in, where npm put it.
const { chromium } = createRequire(`${process.cwd()}/`)('playwright-core');
const [server, experiment, parent, picture] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'], timeout: 0 });
const page = await browser.newPage({ viewport: { width: 1500, height: 900 } });
page.setDefaultTimeout(0);
await page.goto(`${server}/#/experiments/${experiment}/runs?viewStateShareKey=striate`);
const name = await page.waitForSelector(`text="${parent}"`);
await page.waitForTimeout(6000);
// The panel of MLflow's assistant opens by itself.
const close = await page.$('[aria-label="Close"]');
if (close) await close.click();
await page.waitForTimeout(2000);
const at = await name.boundingBox();
// The expander is the small box left of the run's color and name.
await page.mouse.click(at.x - 30, at.y + at.height / 2);
await page.waitForTimeout(5000);
await page.screenshot({ path: picture });
await browser.close();
